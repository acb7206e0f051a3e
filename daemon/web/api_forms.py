"""What the JSON API takes in and gives out, as its OpenAPI description shows it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Me(BaseModel):
    """Who is asking."""

    name: str
    role: str
    csrf_token: str


class Done(BaseModel):
    """What was done."""

    done: str


class StudyItem(BaseModel):
    """One study of a list."""

    study_instance_uid: str
    first_received: float
    last_received: float
    instance_count: int
    revision: int
    state: str
    state_reason: str
    modalities: list[str]
    findings: int | None
    maximum: float | None
    deliveries: dict[str, int]


class StudyPage(BaseModel):
    """One page of studies, and how many match in all."""

    total: int
    page: int
    page_size: int
    studies: list[StudyItem]


class ForwardOrder(BaseModel):
    """Where to send results."""

    destination: str


class RescoreOrder(BaseModel):
    """With which bundle; an empty version means those in use."""

    bundle: str = ""


class TrainingOrder(BaseModel):
    """What to train on, and how to call the bundle."""

    folder: str
    name: str
    class_name: str = "body part"


class VerdictOrder(BaseModel):
    """A verdict on one finding; the polygons of a correction by slice index."""

    revision: int
    group_key: str
    tracking_uid: str
    verdict: Literal["accept", "reject", "correct"]
    correction: dict[int, list[list[tuple[float, float]]]] | None = None
