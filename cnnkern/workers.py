"""The processes that train together under torchrun; one alone needs no group."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Workers:
    """Know this process's place among those that train together, and add up over them."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def join(cls, device: str = "auto") -> "Workers":
        """Join the group that torchrun describes in the environment, or stand alone.

        Args:
            device: cpu, cuda, cuda:N, or auto: a GPU where torch has one. Under torchrun each
                process takes the GPU of its local rank.

        Raises:
            ValueError: no such device, or a GPU where torch has none.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            place = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"train: device must be auto, cpu or cuda, got {device!r}") from error
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"train: device {device}: torch {torch.__version__} finds no CUDA GPU")
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if place.type == "cuda":
            if place.index >= torch.cuda.device_count():
                raise ValueError(f"train: device {place}: torch has {torch.cuda.device_count()}")
            torch.cuda.set_device(place)
        if world_size == 1:
            return cls(place)
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        return cls(place, dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Tell whether this is the process that prints and saves."""
        return self.rank == 0

    @contextlib.contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run the block in the first process, then in the others (who find what it downloaded)."""
        if not self.first:
            dist.barrier()
        yield
        if self.first and self.world_size > 1:
            dist.barrier()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add lists of numbers over the processes."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        """Find the largest of the processes' numbers."""
        return self._reduce([value], dist.ReduceOp.MAX)[0]

    def _reduce(self, values: Sequence[float], op: dist.ReduceOp) -> list[float]:
        if self.world_size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(together, op)
        return together.tolist()

    def leave(self) -> None:
        """Leave the group."""
        if self.world_size > 1:
            dist.destroy_process_group()
