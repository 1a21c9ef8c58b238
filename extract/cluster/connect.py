"""Joins a Ray cluster, and asks what it has. The first file here that needs Ray."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import click

from cache.common.errors import MrrnError
from cache.fingerprint import Fingerprint
from extract.fingerprint import fingerprint
from extract.network.weights import Weights
from extract.settings import ExtractSettings, RequestedSettings

try:
    import ray
except ImportError as error:
    raise MrrnError(f"--engine ray needs Ray ({error}): pip install 'mrrn[ray]'") from error


@dataclass(frozen=True)
class WorkerSlots:
    """How many workers there are, and what each one gets of its node."""

    workers: int
    num_gpus: int
    """Of each worker."""
    num_cpus: int
    """Of each worker, for its decoders; on a CPU the network uses the same ones."""


@contextmanager
def connected() -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine if that is not set. Sends no usage statistics.

    MrrnError if the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("ray://", "http://", "https://")):
        raise MrrnError(
            f"RAY_ADDRESS is {address}, but the driver has to run on a node of the cluster: it commits. Give host:6379 "
            "there, or send the command to the cluster with `ray job submit` (docs/scale.md)"
        )
    try:
        context = ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise MrrnError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}. If it is there and asks for a token, set "
            "RAY_AUTH_MODE=token (docs/scale.md)"
        ) from error
    try:
        dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else "off (pip install 'ray[default]')"
        click.echo(f"Ray {ray.__version__} at {address or 'this machine'}, dashboard {dashboard}")
        yield
    finally:
        ray.shutdown()


def find_device_kind(asked: str) -> str:
    """The kind of device that the workers compute on, cpu or cuda; "auto" is GPUs if the cluster has any."""
    if asked == "auto":
        return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    if asked not in ("cpu", "cuda"):
        raise MrrnError(f"device {asked!r}: with --engine ray it is auto, cpu or cuda; Ray says which GPU is whose")
    return asked


def find_slots(device: str, *, workers: int | None, jobs: int | None) -> WorkerSlots:
    """The workers that the cluster has room for, or as many as asked for: those that do not fit wait for nodes.

    `device` is cpu or cuda. `jobs` is the number of decoders for each GPU, by default the cores of a node shared among
    its GPUs. On CPUs every core has a worker: the network needs all of it, decoding a fiftieth.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device == "cpu":
        found = WorkerSlots(int(sum(node.get("CPU", 0) for node in nodes)), num_gpus=0, num_cpus=1)
    else:
        with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
        cores = min((int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu), default=1)
        found = WorkerSlots(int(sum(node["GPU"] for node in with_gpu)), num_gpus=1, num_cpus=jobs or max(1, cores))
    if not (workers or found.workers):
        raise MrrnError(f"the Ray cluster has no {'CPUs' if device == 'cpu' else 'GPUs'} for workers; it has {nodes}")
    return replace(found, workers=workers or found.workers)


def decide_on_worker(
    requested: RequestedSettings, device: str, slots: WorkerSlots, weights: Weights
) -> tuple[ExtractSettings, Fingerprint]:
    """The settings with everything decided, and their fingerprint, by a worker: the driver may lack its device."""
    requested = replace(requested, jobs=slots.num_cpus if device == "cuda" else 1)
    decide = ray.remote(num_cpus=slots.num_cpus, num_gpus=slots.num_gpus)(_decide)
    return ray.get(decide.remote(requested, device, weights.text, weights.sha256))


def _decide(requested: RequestedSettings, device: str, text: str, sha256: str) -> tuple[ExtractSettings, Fingerprint]:
    settings = requested.decided(device)
    return settings, fingerprint(settings, weights_text=text, weights_sha256=sha256)
