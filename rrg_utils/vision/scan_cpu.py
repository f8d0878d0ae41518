"""The selective scan on a processor: one compiled pass forward, one backward, and nothing large in between.

The states of a scan, (B, D, L, N) numbers, are N times its input, and moving them to memory and back costs more than
computing them. So they never leave the cache: time is cut into tiles of `TILE` steps, the forward pass keeps only the
state at the start of each, and the backward pass runs each tile again from there (as Gu and Dao 2023, section 3.3.2, on
a GPU). What is left is arithmetic, above all exp, on runs of N numbers that fit vector registers.

A block of channels that share B and C is one task. Tasks go to as many threads as torch uses; the kernels hold no lock.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

TILE = 64
_JIT = {"nogil": True, "cache": True, "fastmath": True, "error_model": "numpy"}


def _exp(x):
    """exp for kernels only, chosen by type below."""


@overload(_exp, inline="always")
def _exp_overload(x):
    if x != types.float32:
        return lambda x: math.exp(x)  # double precision is for checking gradients: exact, not fast

    # A call into the C library would keep the compiler from working on many numbers at once, so: exp(x) = 2^k 2^f with
    # whole k and |f| <= 1/2, a polynomial for 2^f (Cephes, exp2f), and k written into the exponent bits. Below 2^-127
    # the result is 0, above 2^127.5 infinite.
    log2e = np.float32(1 / math.log(2))
    low, high, half = np.float32(-127), np.float32(128), np.float32(0.5)
    c6, c5, c4, c3, c2, c1, c0 = (
        np.float32(c) for c in (1.535336e-4, 1.339887e-3, 9.618437e-3, 5.550332e-2, 2.402264728e-1, 6.931472028e-1, 1.0)
    )

    def exp(x):
        v = min(max(x * log2e, low), high)
        k = np.floor(v + half)
        f = v - k
        p = (((((c6 * f + c5) * f + c4) * f + c3) * f + c2) * f + c1) * f + c0
        return p * np.int32((np.int32(k) + 127) << 23).view(np.float32)

    return exp


@lru_cache
def _kernels(states: int) -> tuple[Callable, Callable]:
    """The two passes for blocks of channels with N = `states`: a constant, so that the inner loops become vectors.

    Arrays, all contiguous: u, delta, y (K, L); A (K, N); BC (L, 2, N), B and C of a step side by side; dBC (L, 2 N);
    starts (K, tiles + 1, N), the state at the start of every tile and at the end.

    The compiler turns an inner loop into vectors only if it can show, with few checks, that the loop does not read what
    it writes. Hence what is kept lies in few arrays, one row a step, and dB and dC are summed in a loop of their own.
    """
    N = states

    @njit(**_JIT)
    def forward(u, delta, A, BC, y, starts):
        length, zero = u.shape[1], u.dtype.type(0)
        work = np.empty((2, N), u.dtype)  # A of the channel, state
        for k in range(len(u)):
            work[0] = A[k]
            work[1] = 0
            for t in range(length):
                if t % TILE == 0:
                    starts[k, t // TILE] = work[1]
                d = delta[k, t]
                x = d * u[k, t]
                out = zero
                for n in range(N):
                    h = _exp(d * work[0, n]) * work[1, n] + x * BC[t, 0, n]
                    work[1, n] = h
                    out += h * BC[t, 1, n]
                y[k, t] = out
            starts[k, -1] = work[1]

    @njit(**_JIT)
    def backward(u, delta, A, BC, starts, dy, dlast, du, ddelta, dA, dBC):
        length, zero = u.shape[1], u.dtype.type(0)
        # Of every step of a tile: decay, state before and after it, its terms of dB and dC.
        record = np.empty((TILE, 5 * N), u.dtype)
        work = np.empty((4, N), u.dtype)  # A of the channel, state, decay * dh of the step after, dA
        for k in range(len(u)):
            work[0] = A[k]
            work[2] = dlast[k]
            work[3] = 0
            for tile in range((length - 1) // TILE, -1, -1):
                begin = tile * TILE
                end = min(begin + TILE, length)
                work[1] = starts[k, tile]
                for t in range(begin, end):
                    d = delta[k, t]
                    x = d * u[k, t]
                    step, bc = record[t - begin], BC[t]
                    for n in range(N):
                        decay = _exp(d * work[0, n])
                        step[n] = decay
                        step[N + n] = work[1, n]
                        h = decay * work[1, n] + x * bc[0, n]
                        step[2 * N + n] = h
                        work[1, n] = h
                for t in range(end - 1, begin - 1, -1):
                    d, out = delta[k, t], dy[k, t]
                    x = d * u[k, t]
                    dx, dexp = zero, zero
                    step, bc = record[t - begin], BC[t]
                    for n in range(N):
                        dh = work[2, n] + out * bc[1, n]
                        dbefore = step[n] * dh
                        work[2, n] = dbefore
                        through = dbefore * step[N + n]
                        work[3, n] += d * through
                        dx += dh * bc[0, n]
                        dexp += through * work[0, n]
                        step[3 * N + n] = x * dh
                        step[4 * N + n] = out * step[2 * N + n]
                    for n in range(dBC.shape[1]):
                        dBC[t, n] += step[3 * N + n]
                    du[k, t] = dx * d
                    ddelta[k, t] = dx * u[k, t] + dexp
            dA[k] = work[3]

    return forward, backward


@lru_cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; `process`, because a forked child has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="scan")


def _run(kernel: Callable, tasks: Sequence[tuple]) -> None:
    """kernel(*task) for every task, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), len(tasks))
    if threads <= 1:
        for task in tasks:
            kernel(*task)
    else:
        list(_pool(threads, os.getpid()).map(lambda task: kernel(*task), tasks))


def _blocks(batch: int, groups: int, channels: int) -> list[tuple[int, int, int, slice]]:
    """Tasks (example, group, part of the group, its channels), at least two a thread so that they even out."""
    width = channels // groups
    parts = min(width, -(-2 * torch.get_num_threads() // (batch * groups)))
    edges = [width * p // parts for p in range(parts + 1)]
    return [
        (b, g, p, slice(g * width + edges[p], g * width + edges[p + 1]))
        for b in range(batch)
        for g in range(groups)
        for p in range(parts)
    ]


class FusedScan(torch.autograd.Function):
    """(u, delta (B, D, L), A (D, N), B, C (B, G, N, L)) -> y (B, D, L), last state (B, D, N); one dtype for all."""

    @staticmethod
    def forward(ctx, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        (batch, channels, length), (groups, states) = u.shape, B.shape[1:3]
        u, delta, A, BC = u.contiguous(), delta.contiguous(), A.contiguous(), torch.stack((B.mT, C.mT), -2)
        y, starts = torch.empty_like(u), u.new_empty(batch, channels, -(-length // TILE) + 1, states)
        ctx.save_for_backward(u, delta, A, BC, starts)
        kernel, blocks = _kernels(states)[0], _blocks(batch, groups, channels)
        U, Delta, A_, BC_, Y, Starts = (x.detach().numpy() for x in (u, delta, A, BC, y, starts))
        _run(kernel, [(U[b, c], Delta[b, c], A_[c], BC_[b, g], Y[b, c], Starts[b, c]) for b, g, _, c in blocks])
        return y, starts[:, :, -1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor, dlast: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, BC, starts = ctx.saved_tensors
        kernel, blocks = _kernels(A.shape[1])[1], _blocks(*BC.shape[:2], u.shape[1])
        # Examples share A, and channels share B and C: every task has sums of its own, added up at the end.
        du, ddelta, dA = torch.empty_like(u), torch.empty_like(u), A.new_empty(len(u), *A.shape)
        dBC = BC.new_zeros(1 + max(part for _, _, part, _ in blocks), *BC.shape)
        tensors = (u, delta, A, BC, starts, dy.contiguous(), dlast.contiguous(), du, ddelta, dA, dBC)
        U, Delta, A_, BC_, Starts, Dy, Dlast, Du, Ddelta, DA, DBC = (x.numpy() for x in tensors)
        inputs = [
            (U[b, c], Delta[b, c], A_[c], BC_[b, g], Starts[b, c], Dy[b, c], Dlast[b, c]) for b, g, _, c in blocks
        ]
        DBC = DBC.reshape(*DBC.shape[:-2], -1)
        outputs = [(Du[b, c], Ddelta[b, c], DA[b, c], DBC[part, b, g]) for b, g, part, c in blocks]
        _run(kernel, [(*i, *o) for i, o in zip(inputs, outputs, strict=True)])
        dB, dC = dBC.sum(0).unbind(-2)
        return du, ddelta, dA.sum(0), dB.mT, dC.mT
