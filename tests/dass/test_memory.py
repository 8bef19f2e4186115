import pytest
import torch

from dass.memory import is_out_of_memory


def test_what_torch_raises_on_a_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_what_python_raises_is_recognised() -> None:
    with pytest.raises(MemoryError) as raised:
        bytes(2**60)
    assert is_out_of_memory(raised.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_torch_raises_on_a_gpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.AcceleratorError("CUDA error: out of memory; can't allocate memory"), False),  # only a new process helps
        (ValueError("can't allocate memory"), False),
    ],
)
def test_other_errors_are_told_apart(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory
