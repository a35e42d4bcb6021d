"""The dynamic token generator f and the token decoder g (2.1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext import ops
from dove_ext.config import DoveConfig
from dove_ext.models.cache import KeyValueCache
from dove_ext.models.precision import operands
from dove_ext.models.pretrained import computed
from dove_ext.models.query import Query, at_times, followed, outputs
from dove_ext.models.stack import Stack
from dove_ext.ops.backend import autocasts

# In dB: about what the decoder's repair cannot be foretold by, so that the head's weights are about 1.
QUALITY_STEP = 0.05


def time_encodings(count: int, width: int) -> Tensor:
    """t_1..t_K: sinusoidal encodings, float32 [count, width], sines in the even columns."""
    frequency = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = torch.arange(count, dtype=torch.float32)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class Condition(NamedTuple):
    """What the tokens of B images are made from (`DoveModel.condition`); nothing of it goes anywhere alone.

    Attributes:
        latents: H_v [B, P, latent_channels], the VQGAN encoder's grid, row by row.
        base: with the linear shortcut what the time positions read, [B, K, hidden + 1]: code of the whole
            picture and its quality; or None.
        sent: with the linear shortcut what the tokens hold besides the semantic part, [B, K, hidden + 2]:
            code, quality and address; `base`, or with a relevance that of `RegionCode`.
        quality: float32 [B, K], with the linear shortcut: PSNR in dB of the first 1..K tokens' code.
        margin: float32 [B], with the linear shortcut: dB above `promised_psnr` that a picture needs whose
            content is in one place (`FrequencyShortcut.margin`).
        lost: float32 [B, P], with the linear shortcut: mean squared error of each patch in the picture of all
            latents, in pixels of [-1, 1].
        query: of a text (Q-DOVE), or None.
        seen: where the stack has been over the images already (`Generator.see`), the keys, not rotated, and
            values of their positions in all layers, [B, layers, 2, P, heads, head_dim]; or None.
        relevance: float32 [B, P], how much each place counts in `sent`, `quality` and `margin`; None: all
            alike.
        sight: where images were looked at for queries (`RelevanceMap.see`), [B, P, width]; or None.
        states: where no query changes them, the hidden states of all K time positions (`Generator.states`),
            [B, K, hidden]; or None.
    """

    latents: Tensor
    base: Tensor | None
    sent: Tensor | None
    quality: Tensor | None
    margin: Tensor | None
    lost: Tensor | None
    query: Query | None
    seen: Tensor | None = None
    relevance: Tensor | None = None
    sight: Tensor | None = None
    states: Tensor | None = None


class StopCheck:
    """Whether all images have ended, without a wait for the block of positions that was queued last.

    On a CUDA device the answer is that of the block before: its flag is copied to the host while the newest
    block runs, so the device always has work. It costs one block more than needed, and no stall. On a CPU the
    answer is that of the newest block.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []

    def all_ended(self, ended: Tensor) -> bool:
        """Take the flag (bool, no dimensions) of the block just queued; answer as said above."""
        if not ended.is_cuda:
            return bool(ended)
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        flag.copy_(ended, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(ended.device))
        self._pending.append((flag, copied))
        if len(self._pending) < 2:
            return False
        flag, copied = self._pending.pop(0)
        copied.synchronize()
        return bool(flag)


class Generator(nn.Module):
    """D = f(H_v, t_1, ..., t_K) (Eq. 1): one causal pass over [H_v ; query ; t] gives all tokens.

    d_i is never fed back, so the K time positions may run at once, or in blocks over a key/value cache.
    """

    def __init__(self, config: DoveConfig) -> None:
        super().__init__()
        self.config = config
        width, shortcut = config.generator.hidden, config.shortcut
        self.from_latent = nn.Linear(config.vqgan.latent_channels, width)
        self.times: Tensor
        times = computed(lambda: time_encodings(config.num_tokens, width), config.num_tokens, width)
        self.register_buffer("times", times, persistent=False)
        reads = config.query_vocab_size and config.relevance is None
        self.embed_in = nn.Embedding(config.query_vocab_size, width) if reads else None
        self.stack = Stack(config.generator)
        self.embed_out = nn.Linear(width + shortcut, config.vocab_size, bias=config.head_bias)
        self.from_token = nn.Linear(width + 1, width) if shortcut else None
        self.to_token = nn.Linear(width, config.semantic_width) if config.semantic_width else None
        token = config.token_width
        self.mean = nn.Linear(token, token) if config.gaussian else None
        self.log_variance = nn.Linear(token, token) if config.gaussian else None
        # Rows of the vocabulary that beat EOS most often, for ops.eos_scan; any set of rows is correct.
        witnesses = min(256, config.vocab_size - 1) if config.vocab_size > 2 else 0
        self.witness: Tensor
        first = computed(lambda: torch.arange(1, witnesses + 1).int(), witnesses, dtype=torch.int32)
        self.register_buffer("witness", first)

    @property
    def prefix(self) -> int:
        """Positions at the front that every position sees (Stack.forward)."""
        return 0 if self.config.prefix_attention == "causal" else self.config.num_tokens

    def sequence(self, condition: Condition) -> Tensor:
        """[H_v ; query]: what the time positions follow, [B, P + Q, hidden]; [B, Q, hidden] of seen images.

        Raises:
            ValueError: if the query comes as ids and the model embeds none, or the shortcut's tokens are
                missing or too many.
        """
        if (condition.base is None) != (self.from_token is None):
            raise ValueError("the condition is another model's; make it with this model's `condition`")
        if condition.seen is None:
            x = self.from_latent(condition.latents)
        else:
            kind, weight = condition.seen.device.type, self.from_latent.weight
            dtype = torch.get_autocast_dtype(kind) if autocasts(kind) else weight.dtype
            x = weight.new_empty(len(condition.seen), 0, len(weight), dtype=dtype)
        if condition.query is None:
            return x
        query = condition.query.values
        if not query.is_floating_point():
            if self.embed_in is None:
                raise ValueError(
                    "this model embeds no query ids (query_vocab_size is 0); pass embeddings [B, Q, hidden]"
                )
            query = self.embed_in(query)
        return torch.cat([x, query.to(x.dtype)], dim=1)

    def see(self, condition: Condition) -> Condition:
        """The same condition with the images' positions run through the stack, which no query changes.

        They see neither query nor time positions, so any number of queries may follow.
        """
        x, config = self.from_latent(condition.latents), self.config.generator
        cache = KeyValueCache(config, x.shape[0], x.shape[1], x)
        self.stack(x, prefix=self.prefix, cache=cache, last=1)  # the last layer's output is read by nobody
        return condition._replace(seen=cache.entries.movedim(2, 0))

    def positions(self, start: int, end: int, like: Tensor, condition: Condition) -> Tensor:
        """What stands at the time positions start..end-1: t_i, and with the shortcut its token beside it.

        Args:
            start: first position, from 0.
            end: behind the last.
            like: [B, N, hidden], whose batch size, dtype and device are used.
            condition: of the same B images.

        Returns:
            Tensor: [B, end - start, hidden].
        """
        times = self.times[start:end].to(like.dtype).expand(like.shape[0], -1, -1)
        if self.from_token is None or condition.base is None:  # both or none, see `sequence`
            return times
        return times + self.from_token(condition.base[:, start:end])

    def _inputs(self, x: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """What `sequence` gave, and behind it, each image's behind its own query, times [B, n, hidden]."""
        query = condition.query
        if query is None or query.lengths is None:
            return torch.cat([x, times], dim=1)
        image = x.shape[1] - query.values.shape[1]
        return torch.cat([x[:, :image], followed(x[:, image:], query.lengths, times)], dim=1)

    def _cache(self, condition: Condition, x: Tensor, room: int) -> KeyValueCache:
        """Room for x [B, n, hidden] and `room` positions more, behind images that have been seen."""
        room, config = room + x.shape[1], self.config.generator
        if condition.seen is None:
            return KeyValueCache(config, x.shape[0], room, x)
        return KeyValueCache.of(condition.seen, config, room, x)

    def forward(self, condition: Condition, count: int | None = None) -> Tensor:
        """Last hidden states at the first `count` (default K) time positions: [B, count, hidden].

        With the linear shortcut [B, count, hidden + 1], see `beside_quality`.
        """
        count = self.config.num_tokens if count is None else count
        return self.beside_quality(self.states(condition, count), condition)

    def states(self, condition: Condition, count: int) -> Tensor:
        """Last hidden states at the first `count` time positions: [B, count, hidden]."""
        if condition.states is not None:
            return condition.states[:, :count]
        x = self.sequence(condition)
        x = self._inputs(x, self.positions(0, count, x, condition), condition)
        cache = None if condition.seen is None else self._cache(condition, x, 0)
        states = self.stack(x, prefix=self.prefix, cache=cache, last=outputs(condition.query, count))
        return at_times(states, condition.query, count)

    def beside_quality(self, hidden: Tensor, condition: Condition, start: int = 0) -> Tensor:
        """What the stop head reads: with the linear shortcut the code's quality stands beside a hidden state.

        EOS at position i (from 0) keeps the i tokens before it, whose quality is known of any picture. What
        the head learns is how much the decoder repairs. A model without the shortcut has hidden states alone.

        Args:
            hidden: [B, n, hidden] of the time positions from `start` on.
            condition: of the same images.
            start: first of the positions.

        Returns:
            Tensor: [B, n, hidden + 1], last the PSNR above what is promised, in `QUALITY_STEP`; or `hidden`.
        """
        if condition.quality is None or condition.margin is None:
            return hidden
        # Without a token nothing is known, nor good enough.
        before = F.pad(condition.quality, (1, 0))[:, start : start + hidden.shape[1]]
        above = (before - (self.config.promised_psnr + condition.margin)[:, None]) / QUALITY_STEP
        return torch.cat([hidden, above[..., None].to(hidden.dtype)], dim=-1)

    def image_states_and_forward(self, condition: Condition, count: int) -> tuple[Tensor, Tensor]:
        """Both in one pass: `image_states` behind all layers but the last, and `forward`.

        Args:
            condition: of images that have not been seen.
            count: as for `forward`.
        """
        x = self.sequence(condition)
        x = self._inputs(x, self.positions(0, count, x, condition), condition)
        states = self.stack.states(x, len(self.stack.layers) - 1, prefix=self.prefix)
        hidden = self.stack.finish(states, prefix=self.prefix, last=outputs(condition.query, count))
        hidden = at_times(hidden, condition.query, count)
        return states[:, : condition.latents.shape[1]], self.beside_quality(hidden, condition)

    def image_states(self, latents: Tensor, layers: int) -> Tensor:
        """Hidden states of the image positions behind the first `layers` layers: [B, P, hidden].

        They see neither query nor time positions, so none of these runs. Not normalised, whatever the depth.

        Args:
            latents: as for `sequence`.
            layers: 0 (the stack's input) to all of them.
        """
        return self.stack.states(self.from_latent(latents), layers, prefix=self.prefix)

    def _joined(self, hidden: Tensor, condition: Condition) -> Tensor:
        if condition.sent is None:
            return hidden
        sent = condition.sent[:, : hidden.shape[1]]
        if self.to_token is None:
            return sent
        return torch.cat([sent, self.semantics(hidden)], dim=-1)

    def semantics(self, hidden: Tensor) -> Tensor:
        """What the generator adds to a token beside the linear shortcut's code: [B, n, semantic_width].

        Args:
            hidden: [B, n, hidden + 1], as `forward` gives it.

        Raises:
            ValueError: if this model adds nothing.
        """
        if self.to_token is None:
            raise ValueError("this model's tokens have no semantic part (semantic_width is 0)")
        out: Tensor = self.to_token(hidden[..., :-1])
        return out

    def tokens(self, hidden: Tensor, condition: Condition, *, sample: bool = False) -> Tensor:
        """d_1..d_n from what `forward` gives for the first n time positions: [B, n, D].

        The hidden state is the token. With the linear shortcut a token is its code, the quality of the code
        up to it, its address, and a linear map of the hidden state. With `sample` (in training) the Gaussian
        variant draws its token, otherwise the token is the mean (appendix D); quality and address are never
        noisy.
        """
        d = self._joined(hidden, condition)
        if self.mean is None or self.log_variance is None:
            return d
        drawn = self.mean(d)
        if sample:
            drawn = drawn + torch.randn_like(drawn) * (0.5 * self.log_variance(d)).exp()
        if condition.sent is None:
            return drawn
        at = condition.sent.shape[-1]
        return torch.cat([drawn[..., : at - 2], d[..., at - 2 : at], drawn[..., at:]], dim=-1)

    def divergence(self, hidden: Tensor, condition: Condition) -> Tensor:
        """KL(N(mean, variance) || N(0, 1)) of each token of the Gaussian variant (appendix D): [B, n].

        Args:
            hidden: as for `tokens`.
            condition: as for `tokens`.

        Raises:
            ValueError: if the model has no Gaussian tokens.
        """
        if self.mean is None or self.log_variance is None:
            raise ValueError("this model's tokens have no distribution (gaussian is False)")
        d = self._joined(hidden, condition)
        mean, log_variance = self.mean(d).float(), self.log_variance(d).float()
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)

    def p_eos(self, hidden: Tensor) -> Tensor:
        """The softmax entry of EOS at each position (p_eos of 2.2): float32 [B, n].

        Logits are summed in float32 in any case, and the bias is added to them as it is. On CUDA autocast
        lowers their operands, as those of every matrix product: in bfloat16 a logit errs by at most 2^-8 of
        sum_d |hidden_d weight_d|, and p_eos by a factor of at most exp(2 x the largest such error). On a CPU
        they stay in the weight's dtype.
        """
        head = self.embed_out
        hidden, weight = operands(hidden, head.weight)
        return ops.eos_probability(hidden, weight, head.bias, eos_id=self.config.eos_id).float()

    def stop_log_odds(self, hidden: Tensor) -> Tensor:
        """log(p_eos / (1 - p_eos)) at each position, which tells them apart even where p_eos rounds to 1.

        Args:
            hidden: as for `p_eos`.

        Returns:
            Tensor: float32 [B, n], without gradient.
        """
        head = self.embed_out
        hidden, weight = operands(hidden, head.weight)
        return ops.eos_log_odds(hidden, weight, head.bias, eos_id=self.config.eos_id)

    def first_stop(self, hidden: Tensor, threshold: float | None = None) -> Tensor:
        """First position (0-based) that ends the sequence, or n if none does: int32 [B].

        It follows from the same logits as `p_eos`.

        Args:
            hidden: [B, n, hidden (+ 1)], as `forward` gives them.
            threshold: stop where p_eos >= threshold; None: where EOS wins the vocabulary's arg-max.
        """
        if threshold is None:
            head = self.embed_out
            hidden, weight = operands(hidden, head.weight)
            return ops.eos_scan(hidden, weight, head.bias, eos_id=self.config.eos_id, witness=self.witness)
        stops = self.p_eos(hidden) >= threshold
        count = torch.full_like(stops[:, 0], stops.shape[1], dtype=torch.int32)
        return torch.where(stops.any(1), stops.int().argmax(1).int(), count)

    def lengths(self, hidden: Tensor, threshold: float | None = None, least: int = 1) -> Tensor:
        """Tokens that are kept: those before the first position that ends the sequence, at least `least`.

        Args:
            hidden: as for `first_stop`.
            threshold: likewise.
            least: 1..n; a sequence that ends before has exactly so many.

        Returns:
            Tensor: int32 [B], `least`..n.
        """
        return self.first_stop(hidden, threshold).clamp_min(least)

    def run_until_stop(
        self, condition: Condition, *, limit: int, threshold: float | None, block: int, least: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Run time positions block by block until every image has ended.

        Args:
            condition: of B images.
            limit: at most this many positions.
            threshold: as for `first_stop`.
            block: positions a block; any value gives the same tokens.
            least: as for `lengths`, at most `limit`.

        Returns:
            (Tensor, Tensor): what `forward` gives for the n <= limit positions that ran, and each image's
            length int32 [B], `least`..limit, as `lengths` gives it.
        """
        if condition.states is not None:
            there = self(condition, limit)
            return there, self.lengths(there, threshold, least)
        x, query = self.sequence(condition), condition.query
        cache = self._cache(condition, x, limit)
        # first_stop reports the index behind a block's last position when the block holds no stop.
        lengths = torch.full((x.shape[0],), limit, dtype=torch.int32, device=x.device)
        hidden: list[Tensor] = []
        check = StopCheck()
        for start in range(0, limit, block):
            times = self.positions(start, min(start + block, limit), x, condition)
            count = times.shape[1]
            inputs = times if start else self._inputs(x, times, condition)
            last = count if start else outputs(query, count)
            states = self.stack(inputs, prefix=self.prefix, cache=cache, last=last)
            if start == 0:
                states = at_times(states, query, count)
                if query is not None and query.lengths is not None:  # what is behind was padding
                    cache.ends = query.lengths + (cache.length - query.values.shape[1])
            hidden.append(self.beside_quality(states, condition, start))
            stop = self.first_stop(hidden[-1], threshold)
            ended = (stop < count) & (lengths == limit)
            lengths = torch.where(ended, stop + start, lengths)
            if check.all_ended((lengths < limit).all()) and start + count >= least:
                break
        return torch.cat(hidden, dim=1), lengths.clamp_min(least)

    def reset_parameters(self) -> None:
        """Initialise for training from scratch; with a shortcut EOS starts where its quality suffices."""
        self.stack.reset_parameters()
        for linear in (self.from_latent, self.from_token, self.to_token, self.embed_out):
            if linear is not None:
                std = 0.02 if linear is self.embed_out else linear.in_features**-0.5
                nn.init.normal_(linear.weight, std=std)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        if self.config.shortcut:
            nn.init.zeros_(self.embed_out.weight)
            with torch.no_grad():
                self.embed_out.weight[self.config.eos_id, -1] = 0.5
        elif self.embed_out.bias is not None:
            # p_eos starts at eos_prior: at 1 / 50304 the gradient of a linear p_eos would vanish. One other
            # word starts as the likeliest, as in a pretrained head: beside 50,303 equal ones EOS would win
            # the arg-max everywhere, and every sequence end at once.
            prior, eos, rest = self.config.eos_prior, self.config.eos_id, self.config.vocab_size - 2
            go_on = 100.0 * rest or 1.0  # its odds; the others' are 1 each
            with torch.no_grad():
                self.embed_out.bias[0 if eos else 1] = math.log(go_on)
                self.embed_out.bias[eos] = math.log(prior / (1 - prior) * (go_on + rest))
        if self.mean is not None and self.log_variance is not None:
            nn.init.eye_(self.mean.weight)
            nn.init.zeros_(self.mean.bias)
            nn.init.zeros_(self.log_variance.weight)
            nn.init.constant_(self.log_variance.bias, -6.0)


FEWEST_DROPPED = {"cpu": 1, "cuda": 4096}
"""Slots without keys and values from which on leaving these out saves time, if they are an eighth of all.

The eighth was measured on a CPU. On a GPU some 36 more launches must pay: not measured yet (docs/kernels.md).
"""


def kept_total(lengths: Tensor, total: int | None, slots: int) -> int | None:
    """How many slots are kept, if that is known without a wait and saves time; else None.

    Args:
        lengths: int32 [B].
        total: their sum, where the caller knows it.
        slots: of all images.
    """
    if torch.compiler.is_compiling():  # sizes would depend on values
        return None
    if total is None and lengths.device.type == "cpu" and type(lengths) is Tensor:  # not traced
        total = int(lengths.sum())
    fewest = FEWEST_DROPPED.get(lengths.device.type)
    if not total or fewest is None or slots - total < max(fewest, slots // 8):
        return None
    return total


class TokenDecoder(nn.Module):
    """g: all K slots, zeros included, attend to one another and become the grid's latents (2.1).

    Without `attend_padding` all slots attend to the kept tokens, and only these get keys and values.
    """

    def __init__(self, config: DoveConfig) -> None:
        super().__init__()
        self.attend_padding = config.attend_padding
        self.width = width = config.token_decoder.hidden
        latent = config.vqgan.latent_channels
        self.from_grid = nn.Linear(latent, width) if config.shortcut else None
        self.stack = Stack(config.token_decoder)
        self.to_latent = nn.Linear(width, latent)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor,
        base: Tensor | None = None,
        gain: Tensor | None = None,
        *,
        total: int | None = None,
    ) -> Tensor:
        """Latents [B, P, latent_channels].

        Args:
            tokens: [B, K, D], zero behind each image's length; of a linear shortcut's the code is read.
            lengths: int32 [B]; without `attend_padding` slots from here on are not attended to.
            base: with the linear shortcut, its latents [B, P, latent_channels]; the stack reads them beside
                the tokens and changes them.
            gain: float32 [B], the size of that change (`FrequencyShortcut.gain`).
            total: the sum of `lengths`, where they are on a device that would have to be waited for.
        """
        x = tokens[..., : self.width]
        if self.from_grid is not None and base is not None:
            x = x + self.from_grid(base)
        if self.attend_padding:
            hidden = self.stack(x, prefix=None)
        else:
            total = kept_total(lengths, total, x.shape[0] * x.shape[1])
            hidden = self.stack(x, prefix=None, kv_lens=lengths, total=total)
        change: Tensor = self.to_latent(hidden)
        if gain is not None:
            change = change * gain[:, None, None].to(change.dtype)
        return change if base is None else base + change

    def reset_parameters(self) -> None:
        """Initialise for training from scratch; with a shortcut the stack starts by changing nothing."""
        self.stack.reset_parameters()
        if self.from_grid is None:
            nn.init.normal_(self.to_latent.weight, std=self.to_latent.in_features**-0.5)
        else:
            nn.init.zeros_(self.to_latent.weight)
            nn.init.normal_(self.from_grid.weight, std=self.from_grid.in_features**-0.5)
            nn.init.zeros_(self.from_grid.bias)
        nn.init.zeros_(self.to_latent.bias)
