"""A program for CUDA that starts processes in the ways that Python and torch have, and says what each has seen."""

import multiprocessing
import subprocess
import sys

import torch
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, Dataset


def where() -> str:
    return f"{torch.cuda.is_available()} {torch.ones(2, device='cuda:1').sum().item():.0f}"


def tell(queue: "multiprocessing.Queue[str]", name: str) -> None:
    queue.put(f"{name}: {where()}")


def double(given: "multiprocessing.Queue[torch.Tensor]", back: "multiprocessing.Queue[torch.Tensor]") -> None:
    tensor = given.get(timeout=60)
    tensor.mul_(2)
    back.put(tensor)
    given.get(timeout=60)  # the memory is shared as long as this process lives


class OnCard(Dataset):
    """Its workers make tensors for the card, which is only possible where they are started anew."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index), device="cuda").cpu()


def by_multiprocessing(method: str) -> str:
    context = mp.get_context(method)
    queue = context.Queue()
    process = context.Process(target=tell, args=(queue, method))
    process.start()
    said = queue.get(timeout=60)
    process.join()
    return said


def by_queue() -> str:
    context = mp.get_context("spawn")
    given, back = context.Queue(), context.Queue()
    process = context.Process(target=double, args=(given, back))
    process.start()
    tensor = torch.full((2,), 3.0, device="cuda")
    given.put(tensor)
    returned = back.get(timeout=60)
    said = f"queue: {returned.tolist()} {tensor.tolist()}"
    given.put(None)
    process.join()
    return said


def by_loader() -> str:
    loader = DataLoader(OnCard(), batch_size=2, num_workers=1, multiprocessing_context="spawn", pin_memory=False)
    return f"loader: {[batch.cuda().sum().item() for batch in loader]}"


def by_command() -> str:
    code = "import torch; print(torch.ones(2, device='cuda').sum().item())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return f"subprocess: {done.stdout.strip()}{done.stderr[-300:]}"


WAYS = {
    **{method: lambda method=method: by_multiprocessing(method) for method in ("fork", "spawn", "forkserver")},
    "queue": by_queue,
    "loader": by_loader,
    "subprocess": by_command,
}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(WAYS[name](), flush=True)
