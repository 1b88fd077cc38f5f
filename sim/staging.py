"""Staging: a pass of a pipeline's stage takes longer than its layers do within a step of the whole model.

The schedule keeps books, a neighbour's message has taken the cache, memory holds more micro-batches at once, and
messages are taken and sent off. On lanes: 0.2 to 1 ms a pass, nearly whatever its size; so it is seconds, not a factor.
Devices without such a measurement have none of it, which is what every datasheet's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .device import Device
from .program import Job, Program, Worker

Jobs = tuple[tuple[Job, ...], ...]


def with_staging(program: Program, devices: Mapping[str, Device]) -> Program:
    """The program with what each pass of a stage takes beyond its layers; alone in its pipeline, a stage has none."""
    extras = {name: extra_s(device) for name, device in devices.items()}
    if not any(map(any, extras.values())):
        return program
    return replace(program, workers=tuple(_longer(worker, extras) for worker in program.workers))


def extra_s(device: Device) -> tuple[float, float]:
    """Seconds that a forward and a backward pass of a stage take longer on a device."""
    profile = device.layer_profile
    if profile is None or profile.stage_pass is None:
        return 0.0, 0.0
    return device.slowdown * profile.stage_pass.forward_s, device.slowdown * profile.stage_pass.backward_s


def _longer(worker: Worker, extras: Mapping[str, tuple[float, float]]) -> Worker:
    if not any(job.needs or job.sends for job in worker.every_job):
        return worker
    forward, backward = (_pieces(jobs, worker, extras, way) for way, jobs in enumerate(worker.jobs))
    return replace(worker, jobs=(forward, backward))


def _pieces(jobs: Jobs, worker: Worker, extras: Mapping[str, tuple[float, float]], way: int) -> Jobs:
    own = [extras[member[0]][way] for member in worker.members]

    def longer(job: Job) -> Job:
        return replace(job, compute_s=tuple(each + extra for each, extra in zip(job.compute_s, own, strict=True)))

    return tuple(tuple(longer(job) for job in chunk) for chunk in jobs)
