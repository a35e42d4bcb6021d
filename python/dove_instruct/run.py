"""The loop of `dove vlm train`: a step is a function of settings, weights and its number alone."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dove_ext.atomic import make_writable_folder
from dove_ext.errors import DoveError
from dove_ext.images.tiles import tile_limits
from dove_ext.models.pretrained import weights_digest
from dove_ext.tokens import DoveTokens
from dove_ext.tokens.lengths import LengthRule
from dove_instruct.build import build, set_trained
from dove_instruct.conversations import Conversation, fingerprint, read_conversations
from dove_instruct.rows import Rows
from dove_instruct.settings import FREE, Settings
from dove_instruct.token_cache import TokenCache
from dove_train.checkpoints import clear_away, newest_checkpoint, require_same_run, write_checkpoint
from dove_train.data import SkippedImages
from dove_train.distributed import World, whole
from dove_train.optimizer import MOST_BROKEN_STEPS, load_optimizer, make_groups, optimizer_state, warm_cosine
from dove_train.progress import Reporter
from dove_train.settings import TrainingError
from dove_vlm import DoveDataCollator, DoveLlavaForConditionalGeneration
from dove_vlm.collate import LEARN_NOT

BETAS = (0.9, 0.999)  # Table 8


class Run:
    """An instruction-tuning run.

    Args:
        settings: of the run.
        folder: where its checkpoints, log, tokens and model go; made if it is not there.
        world: the processes of the run.
        vision: a tower in place of the settings' encoder.

    Raises:
        TrainingError: if settings, data or parts of the model cannot be used.
        DoveError: if the encoder cannot be read.
    """

    def __init__(self, settings: Settings, folder: Path, world: World, vision: Any = None) -> None:
        self.settings, self.world = settings, world
        if settings.global_batch % world.size:
            raise TrainingError(
                f"global_batch ({settings.global_batch}) must be a multiple of the {world.size} processes"
            )
        if settings.tiles:
            try:
                tile_limits(settings.tiles)
            except ValueError as error:
                raise TrainingError(str(error)) from error
        self.conversations = read_conversations(settings.data, settings.images or None)
        self.folder = make_writable_folder(folder)
        self.report = Reporter(folder, quiet=not world.leads, tensorboard=settings.tensorboard)
        self.model, self.processor = build(settings, vision)
        rates = set_trained(self.model, settings)
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        _check_rows(settings, self.model)
        # Which are in no checkpoint: a run that goes on needs the same.
        trained = set(self.names)
        weights = self.model.state_dict().items()
        self.untrained = weights_digest({name: x for name, x in weights if name not in trained})
        self.model.to(world.device)
        self.encoder = self.model.vision_tower.dove
        if world.sharded:  # an encoder in shards could not run alone
            self.encoder = type(self.encoder)(self.encoder.config).to(world.device)
            self.encoder.load_state_dict(self.model.vision_tower.dove.state_dict())
            self.encoder.tokenizer = self.model.vision_tower.dove.tokenizer
            self.processor.image_processor.encoder = self.encoder
        self.encoder.eval()
        if settings.lengths and not settings.tiles:  # of tiles they are a picture's, which `encode` checks
            try:
                LengthRule(**settings.lengths).check(self.encoder.config.num_tokens, images=1)
            except (ValueError, TypeError) as error:
                raise TrainingError(f"lengths cannot be used: {error}") from error
        if settings.ask and not self.encoder.config.query_vocab_size:
            raise TrainingError(
                f"{settings.encoder!r} reads no queries; leave ask out, or take an encoder that does"
            )
        self.cache: Callable[[Sequence[Path], str | None], DoveTokens] | None = None
        if not settings.train_encoder:
            dtype = torch.bfloat16 if settings.bf16 else torch.float32
            place = Path(settings.cache) if settings.cache else self.folder / "tokens"
            shape = {"tiles": settings.tiles} if settings.tiles else {"fit": settings.fit}
            self.cache = TokenCache(place, self.encoder, {**shape, **settings.lengths}, dtype)
        self.skipped = SkippedImages(settings.max_unreadable, self.report.warn)
        self.rows = Rows(
            self.conversations,
            self.look,
            self.processor.tokenizer,
            seed=settings.seed,
            ask=settings.ask,
            skipped=self.skipped,
            template=settings.template,
            image_token=self.processor.image_token,
            max_length=settings.max_length,
        )
        self.processor.tokenizer.padding_side = "right"
        self.collate = DoveDataCollator(self.processor.tokenizer, packed=settings.packed)
        self.step = self.broken_steps = 0
        self.spread(rates)

    def spread(self, rates: dict[str, list[nn.Parameter]]) -> None:
        """Spread the model over the processes, and make its optimiser."""
        s = self.settings
        self.model.train()
        self.model.vision_tower.train(s.train_encoder)
        if s.activation_checkpointing:
            self.model.gradient_checkpointing_enable()
        of_rate = {id(p): rate for rate, parameters in rates.items() for p in parameters}
        rate_of = {name: of_rate[id(p)] for name, p in self.model.named_parameters() if p.requires_grad}
        blocks = set(self.model.language_model._no_split_modules or ())
        kinds = tuple({type(part) for part in self.model.modules() if type(part).__name__ in blocks})
        if self.world.sharded:
            self.model.to(memory_format=torch.contiguous_format)  # FSDP2 shards no channels-last weights
        self.path = self.world.spread(self.model, kinds)
        # Only now: shards are parameters of their own.
        groups = []
        for rate in rates:
            trained = [p for name, p in self.model.named_parameters() if rate_of.get(name) == rate]
            groups += [{**group, "peak": getattr(s, rate)} for group in make_groups(trained, s.weight_decay)]
        self.optimizer = torch.optim.AdamW(groups, lr=s.learning_rate, betas=BETAS)

    # --- Rows -----------------------------------------------------------------------------------------

    def look(self, row: Conversation, query: str | None) -> dict[str, Any]:
        """The images' part of a row, see `rows.Look`."""
        if not row.images:
            return {}
        prepare = self.processor.image_processor
        if self.cache is not None:
            try:
                return dict(prepare(self.cache(row.images, query), return_tensors="pt"))
            except DoveError:
                raise
            except (TypeError, ValueError) as error:  # of lengths that do not fit a picture's tiles
                raise TrainingError(f"{row.name}: lengths cannot be used: {error}") from error
        # Counted with the weights of this step, one by one; the tower keeps as many.
        parts = [prepare([image], return_tensors="pt", return_pixel_values=True) for image in row.images]
        names = ("pixel_values", "num_image_tokens")
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in names}

    def batches(self) -> list[dict[str, Any]]:
        """The passes of this process in the next step."""
        s = self.settings
        mine = s.global_batch // self.world.size
        first = self.step * s.global_batch + self.world.rank * mine
        # Rows of about one length pass together: less is padded, and their sum is the same.
        rows = sorted((self.rows[first + i] for i in range(mine)), key=lambda row: len(row["input_ids"]))
        return [self.collate(rows[i : i + s.batch_size]) for i in range(0, mine, s.batch_size)]

    # --- The loop -------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train from the newest checkpoint, or from the beginning, to the end; then save the model.

        Raises:
            TrainingError: if the folder holds another run, rows cannot be used, or the loss stays infinite.
        """
        self.fit()
        self.save_model()

    def fit(self) -> None:
        """`train` without saving the model."""
        s = self.settings
        self.start()
        since, rows = time.perf_counter(), 0
        while self.step < s.steps:
            values = self.take_step()
            rows += s.global_batch
            if self.step % s.log_every == 0 or self.step == s.steps:
                pace = rows / (time.perf_counter() - since)
                self.report.progress(self.step, s.steps, "vlm", {"rows/s": pace, **values})
                since, rows = time.perf_counter(), 0
            if self.step % s.checkpoint_every == 0 or self.step == s.steps:
                self.save()

    def take_step(self) -> dict[str, float]:
        """One optimiser step; returns what is logged."""
        s, world = self.settings, self.world
        state = np.random.SeedSequence((s.seed, 4, self.step, world.rank)).generate_state(1)
        torch.manual_seed(state[0].item())  # of dropout, where a language model has it
        batches = self.batches()
        numbers = torch.tensor(
            [
                sum(int((batch["labels"][:, 1:] != LEARN_NOT).sum()) for batch in batches),
                sum(int(_seen(batch).sum()) for batch in batches),
                sum(int(batch["num_image_tokens"].sum()) for batch in batches if "num_image_tokens" in batch),
            ],
            dtype=torch.float64,
        )
        learned, tokens, of_images = world.sum(numbers.to(world.device)).tolist()
        share = warm_cosine(self.step, s.steps, s.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=world.device)
        for number, batch in enumerate(batches):
            total += self.forward_backward(batch, learned, last=number == len(batches) - 1)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(whole(nn.utils.clip_grad_norm_(trained, s.clip)))
        self.update(norm)
        self.step += 1
        loss = world.sum(total).item() / learned
        per_row = {"tokens": tokens / s.global_batch, "image tokens": of_images / s.global_batch}
        return {"loss": loss, **per_row, "norm": norm, "lr": s.learning_rate * share}

    def forward_backward(self, batch: dict[str, Any], learned: float, *, last: bool) -> Tensor:
        """One pass and its gradient, which is shared with the other processes at the step's last pass.

        Args:
            batch: of this pass.
            learned: positions of all passes of all processes whose word is learned: each counts alike.
            last: whether it is the step's last pass.

        Returns:
            Tensor: the sum of its positions' losses.
        """
        world = self.world
        labels = batch.pop("labels")[:, 1:].to(world.device)
        batch = {name: x.to(world.device) if isinstance(x, Tensor) else x for name, x in batch.items()}
        with nullcontext() if last else self.held():
            with torch.autocast(world.device.type, torch.bfloat16, enabled=self.settings.bf16):
                logits = self.path(**batch).logits[:, :-1]
            answers = labels != LEARN_NOT
            loss = nn.functional.cross_entropy(logits[answers].float(), labels[answers], reduction="sum")
            # Gradients are averaged over processes.
            (loss * (world.size / learned)).backward()
        return loss.detach()

    def held(self) -> Any:
        """While gradients are summed up here, and not shared yet; FSDP2 shares them in every pass."""
        return self.path.no_sync() if hasattr(self.path, "no_sync") else nullcontext()

    def update(self, norm: float) -> None:
        """Move the weights, unless the gradient is not finite; a row of such steps ends the run."""
        if math.isfinite(norm):
            self.optimizer.step()
            self.broken_steps = 0
            return
        self.broken_steps += 1
        self.report.warn(f"step {self.step}: the gradient is not finite; skipped")
        if self.broken_steps == MOST_BROKEN_STEPS:
            raise TrainingError(
                "ten steps in a row had a gradient that is not finite; lower the learning rates"
            )

    # --- Files ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or go on from the newest checkpoint of the folder."""
        where = self.folder / "checkpoints"
        if self.world.leads:
            clear_away(self.folder)
        state = newest_checkpoint(where, self.report.warn)
        if state is None:
            self.report.begin()
            self.report.log({"settings": dataclasses.asdict(self.settings), "rows": len(self.conversations)})
            return
        require_same_run(state, self.settings, self.settings.global_batch, where, free=FREE)
        if state["data"] != fingerprint(self.conversations):
            raise TrainingError(f"{where} was written with other data; give those, or another output (-o)")
        if state["untrained"] != self.untrained:
            raise TrainingError(
                f"{where} was written with other weights of {' and '.join(self.fixed_parts())}, which this "
                "run does not train; give those, or another output (-o)"
            )
        self.step, self.skipped.reasons = state["step"], state["skipped"]
        self.load_weights(state["model"])
        load_optimizer(self.model, self.optimizer, state["optimizer"], self.world)
        self.report.resume_at(self.step)
        self.report.say(f"going on at step {self.step} of {self.settings.steps}")

    def fixed_parts(self) -> list[str]:
        """The settings whose weights are not trained, as a message calls them."""
        s = self.settings
        parts = [] if s.train_encoder else [f"encoder {s.start_from or s.encoder!r}"]
        model = s.start_from or s.language_model
        return parts + ([] if s.train_language_model else [f"language model {model!r}"])

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take the trained weights of a checkpoint."""
        if not self.world.sharded:
            self.model.load_state_dict(weights, strict=False)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)

    def weights(self) -> dict[str, Tensor]:
        """All weights, whole; every process must call it."""
        return {name: whole(tensor) for name, tensor in self.model.state_dict().items()}

    def save(self) -> None:
        """Write a checkpoint: what is trained, and everything a resumed run needs."""
        weights = self.weights()
        state = {
            "settings": dataclasses.asdict(self.settings),
            "data": fingerprint(self.conversations),
            "global_batch": self.settings.global_batch,
            "untrained": self.untrained,
            "skipped": self.skipped.reasons,
            "model": {name: weights[name] for name in self.names},
            "optimizer": optimizer_state(self.model, self.optimizer, self.world),
        }
        if self.world.leads:
            write_checkpoint(self.folder / "checkpoints", self.step, state, self.settings.keep_checkpoints)
        self.world.wait()

    def save_model(self) -> None:
        """Write model/, which `AutoProcessor` and `AutoModelForImageTextToText` read; whole or not at all."""
        dtype = torch.bfloat16 if self.settings.bf16 else torch.float32
        weights = {
            name: (
                x if name.startswith("vision_tower.") else x.to(dtype)
            ).cpu()  # what encodes keeps its dtype
            for name, x in self.weights().items()
        }
        if self.world.leads:
            with torch.device("meta"):
                model = DoveLlavaForConditionalGeneration(self.model.config)
            model.load_state_dict(weights, assign=True)
            model.tie_weights()
            model.generation_config = self.model.generation_config
            new, place = self.folder / "model.new", self.folder / "model"
            shutil.rmtree(new, ignore_errors=True)
            model.save_pretrained(new)
            self.processor.tokenizer.padding_side = "left"  # for answers
            self.processor.save_pretrained(new)
            shutil.rmtree(place, ignore_errors=True)
            new.replace(place)
        self.world.wait()


def _check_rows(settings: Settings, model: DoveLlavaForConditionalGeneration) -> None:
    """Refuse rows that the language model cannot read.

    Raises:
        TrainingError: naming the setting.
    """
    if settings.packed and not model.takes_positions:
        raise TrainingError(
            f"{type(model.language_model).__name__} takes no position_ids, so packed rows would see one "
            "another; leave packed out"
        )
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and settings.max_length > most:
        raise TrainingError(
            f"max_length is {settings.max_length}, the language model has {most} positions; set max_length: "
            f"{most}, or less"
        )


def _seen(batch: dict[str, Any]) -> Tensor:
    """1 for each token that is no padding; packed rows have none, and no mask."""
    mask: Tensor = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    return mask
