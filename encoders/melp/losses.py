"""MELP's losses between recordings and reports, over the batches of all processes.

Every process compares its own recordings and reports with those of all. Gathering hands gradients back to where the
values came from, so the mean of the processes' losses and of their gradients is that of one process with the whole
batch.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch.autograd.function import FunctionCtx

from encoders.melp.configuration import SingleSentence

# GLoRIA's temperatures (Huang et al., ICCV 2021), which upstream took over: of the attention over beats, of the sum
# over sentences, of the contrast.
_ATTENTION, _SENTENCES, _CONTRAST = 4.0, 5.0, 10.0


def processes(training: bool) -> int:
    """How many processes train together: 1 outside of training, where one process may evaluate by itself."""
    return dist.get_world_size() if training and dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)  # what the losses of all processes make of the values of all
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather(rows: torch.Tensor, training: bool) -> torch.Tensor:
    """The rows of all processes, `[B, ...] -> [processes * B, ...]`, in order of their ranks, with gradients.

    Outside of training, or with one process, `rows` itself. Shapes must be the same in all processes.
    """
    return _Gather.apply(rows) if processes(training) > 1 else rows


def check_batches(batch: int, training: bool, device: torch.device) -> None:
    """Refuse batches that cannot be compared, before anything waits for them.

    Raises:
        ValueError: A process has a batch of another size.
    """
    if processes(training) > 1:
        sizes = [torch.empty(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([batch], device=device))
        if len(set(counts := torch.cat(sizes).tolist())) > 1:
            raise ValueError(f"the processes have batches of {counts} recordings: contrast needs the same in each")


def most_sentences(mask: torch.Tensor, training: bool) -> int:
    """Width of `mask` `[B, S]` in the process where it is widest."""
    width = torch.tensor(mask.shape[1], device=mask.device)
    if processes(training) > 1:
        dist.all_reduce(width, op=dist.ReduceOp.MAX)
    return int(width)


def first_row(batch: int, training: bool) -> int:
    """Where in what `gather` gives a process's own rows begin."""
    return dist.get_rank() * batch if processes(training) > 1 else 0


def matching_loss(by_ecg: torch.Tensor, by_text: torch.Tensor, first: int) -> torch.Tensor:
    """Mean cross-entropy of finding the report of each recording and the recording of each report.

    Logits are of a process's recordings against all reports and of its reports against all recordings, `[B, N]` each;
    its pairs begin in column `first`.
    """
    target = torch.arange(first, first + len(by_ecg), device=by_ecg.device)
    return (F.cross_entropy(by_ecg, target) + F.cross_entropy(by_text, target)) / 2


def local_similarity(
    beats: torch.Tensor, sentences: torch.Tensor, mask: torch.Tensor, single_sentence: SingleSentence
) -> torch.Tensor:
    """How well a recording's beats account for a report's sentences, as logits `[E, N]` (GLoRIA's local similarity).

    Each sentence attends to the beats; the score of a pair is the soft maximum, over the sentences, of the cosine
    between a sentence and what it attends to.

    Beats are `[E, Q, D]`, sentences `[N, S, D]`; their mask, bool `[N, S]`, is true at least once in each row.
    """
    scores = torch.einsum("eqd,nsd->ensq", beats, sentences)
    lengths = sentences.norm(dim=-1).clamp_min(1e-8)  # [N, S]
    # Sentences compete for each beat first, so that what all of them say of a beat weighs nothing.
    share = scores.masked_fill(~mask[None, :, :, None], -torch.inf).softmax(dim=2)
    if single_sentence == "cosine":  # a sentence without competitors has a share of 1 in every beat
        cosine = scores / (lengths[None, :, :, None] * beats.norm(dim=-1).clamp_min(1e-8)[:, None, None])
        share = torch.where((mask.sum(dim=1) == 1)[None, :, None, None], cosine, share)
    attention = (_ATTENTION * share).softmax(dim=-1)  # [E, N, S, Q]
    # The cosine between a sentence and the beats it attends to, without making their sum [E, N, S, D].
    gram = beats @ beats.mT
    squared = (torch.einsum("ensq,eqr->ensr", attention, gram) * attention).sum(dim=-1)
    cosines = (attention * scores).sum(dim=-1) / (lengths * squared.clamp_min(1e-16).sqrt())  # [E, N, S]
    return _CONTRAST * (_SENTENCES * cosines).masked_fill(~mask, -torch.inf).logsumexp(dim=-1)


def caption_loss(logits: torch.Tensor, labels: torch.Tensor, training: bool) -> torch.Tensor:
    """Mean cross-entropy of logits `[words, vocabulary]`, in training over the words of all processes."""
    count = torch.tensor(float(len(labels)), device=logits.device)
    if processes(training) > 1:
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return F.cross_entropy(logits.float(), labels, reduction="sum") / count
