"""The faults: the file, the text in it, the text planted instead, and the quick tests that should find it.

A fault is one wrong sign, factor, comparison or missing line, such as a change may introduce. The text that it replaces
must occur once in its file. ``test_table.py`` checks that, so that the table stays up to date with the code.
"""

from typing import NamedTuple

KINDS = ("reference", "CPU kernel", "CUDA kernel", "selection", "file", "command line")


class Fault(NamedTuple):
    """One fault. ``old`` occurs once in ``file``; ``tests`` are arguments of pytest."""

    kind: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _fault(kind: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(kind, file, old, new, tuple(f"tests/{test}" for test in tests))


def _reference(file: str, old: str, new: str, *tests: str) -> Fault:
    return _fault("reference", f"lapal_ext/{file}", old, new, *tests)


def _op(name: str, old: str, new: str) -> Fault:
    return _reference(f"ops/{name}.py", old, new, f"ops/test_{name}.py")


def _cpu(name: str, old: str, new: str) -> Fault:
    return _fault("CPU kernel", f"csrc/cpu/ops/{name}.cpp", old, new, f"ops/test_{name}.py", "ops/test_every_op.py")


def _cuda(name: str, old: str, new: str) -> Fault:
    fault = _fault("CUDA kernel", f"csrc/cuda/ops/{name}.cuh", old, new, "cuda_emulator/test_kernels.py")
    return fault._replace(tests=(*fault.tests, "-k", f"{name} and not large and not every_kernel"))


def _selection(file: str, old: str, new: str, *tests: str) -> Fault:
    return _fault("selection", f"lapal_ext/{file}", old, new, *tests)


def _file(file: str, old: str, new: str, *tests: str) -> Fault:
    return _fault("file", f"lapal_ext/{file}", old, new, *tests)


def _command(file: str, old: str, new: str, *tests: str) -> Fault:
    return _fault("command line", f"lapal_ext/cli/{file}", old, new, *tests)


_STUDIO = ("cli/select/test_label_studio.py", "interop/test_label_studio.py")

FAULTS = (
    # Formulas in plain torch.
    _reference(
        "likelihood.py",
        "(1.0 + kappa * variance.clamp(min=0.0)).rsqrt()",
        "(1.0 + kappa * variance.clamp(min=0.0)).reciprocal()",
        "test_likelihood.py",
    ),
    _reference(
        "likelihood.py", "return rest / (1.0 + rest).square()", "return rest / (1.0 + rest)", "test_likelihood.py"
    ),
    _reference(
        "likelihood.py",
        "gamma / (1.0 + curvature_weight(logits, curvature) * variance)",
        "gamma / (1.0 + variance)",
        "test_likelihood.py",
    ),
    _reference("line_search.py", "slope = mean + a * norm / gamma", "slope = mean + a * norm", "test_likelihood.py"),
    _reference(
        "likelihood.py",
        "(top.others * top.shifted).sum(-1) / (1.0 + top.rest)",
        "(top.others * top.shifted).sum(-1)",
        "test_likelihood.py",
    ),
    _reference(
        "posterior/softmax_fit/class_curvature.py",
        "probabilities.mul(1.0 - probabilities).mul_(self._objective.trust)",
        "probabilities.mul(1.0 - probabilities)",
        "posterior/test_softmax_fit.py",
    ),
    _reference(
        "posterior/softmax_fit/class_curvature.py",
        "block = prior + others[k] * spread",
        "block = prior",
        "posterior/test_softmax_fit.py",
    ),
    _reference(
        "posterior/softmax_fit/trust_region.py",
        "product = ratio * (product + share * direction_square)",
        "product = ratio * product",
        "posterior/test_softmax_fit.py",
    ),
    _reference(
        "posterior/softmax_fit/quasi_newton.py",
        "            if product > 0.0:\n",
        "            if True:\n",
        "posterior/test_softmax_fit.py",
    ),
    _reference(
        "posterior/softmax_fit/quasi_newton.py",
        "return max(changes[-1], 0.5 * few) * max(1.0, q / (1.0 - q) / 3.0)",
        "return max(changes[-1], 0.5 * few)",
        "posterior/test_softmax_fit.py",
    ),
    _reference(
        "posterior/softmax_fit/quasi_newton.py",
        "ops.softmax_gradient.unchecked(x, logits, targets, trust, none)",
        "ops.softmax_gradient.unchecked(x, logits, targets, torch.ones_like(trust), none)",
        "posterior/test_map_fit.py",
    ),
    _reference(
        "posterior/map_fit.py",
        "start = start - start.mean(0)",
        "start = start.clone()",
        "posterior/test_softmax_fit.py",
    ),
    _reference(
        "losses.py",
        "right = (top.rest.square() + squares)",
        "right = (top.rest.square() - squares)",
        "test_likelihood.py",
        "ops/test_lookahead_loss.py",
    ),
    _op("rank_one_update", "scale = 1.0 + curvature", "scale = 1.0 - curvature"),
    _op(
        "rank_n_update",
        "return (lower + lower.tril(-1).mT).contiguous()",
        "return (lower + lower.tril().mT).contiguous()",
    ),
    _op("update_coefficients", "triangle[:, t + 1 :, t] = shrunk", "triangle[:, t + 1 :, t] = -shrunk"),
    _op(
        "lookahead_loss",
        "variance - (beta[tile, :, None] * z.square()).sum(1)",
        "variance + (beta[tile, :, None] * z.square()).sum(1)",
    ),
    _op(
        "expected_lookahead", "(losses * p).sum((1, 2), dtype=torch.float64)", "losses.sum((1, 2), dtype=torch.float64)"
    ),
    _op("mc_predictive", "variance.clamp(min=0.0).sqrt()[:, None]", "variance.clamp(min=0.0)[:, None]"),
    _op("bait_step_", "fisher_norm - 2.0 * along_w", "fisher_norm - along_w"),
    _op("badge_step_", "running > threshold * running[-1]", "running >= threshold * running[-1]"),
    _op("nearest_distance_", "square_distances(pool, centre, scale)", "square_distances(pool, centre, scale.square())"),
    _op("best_row", ".logical_and_(~taken)", ""),
    # Kernels for the CPU.
    _cpu("rank_one_update", "out[j] = row[j] - shrinkage * product;", "out[j] = row[j] + shrinkage * product;"),
    _cpu("rank_one_update", "return scale > 0.0 ?", "return scale > -1e9 ?"),
    _cpu("rank_n_update", "rows[i] -= known[i];", "rows[i] += known[i];"),
    _cpu("rank_n_update", "std::max<int64_t>(0, column + j - first)", "std::max<int64_t>(0, column + j - first + 2)"),
    _cpu(
        "predictive_variance",
        "to[k * kPanel<T> + j] = row[j] + mirrored[k][j];",
        "to[k * kPanel<T> + j] = T(2) * row[j];",
    ),
    _cpu("predictive_variance", "variance[row][lane] += sums[kL + lane] * own[kL + lane];", ""),
    _cpu(
        "predictive",
        "const T term = exp_nonpositive((block[k * kL + lane] - best[lane]) * link[lane]);",
        "const T term = exp_nonpositive(block[k * kL + lane] * link[lane] - best[lane]);",
    ),
    _cpu("bait_step_", "h[lane] -= shrunk * along_u[lane];", "h[lane] += shrunk * along_u[lane];"),
    _cpu("nearest_distance_", "lower_to<1>(pass, l, start, rows, squares, scratch);", ""),
    _cpu("badge_step_", "const T computed = norms - T(2) * product;", "const T computed = norms - product;"),
    _cpu(
        "update_coefficients", "const double scale = 1.0 + weight * variance;", "const double scale = 1.0 + variance;"
    ),
    _cpu("expected_lookahead", "const T d = shared.gap[lane] + softmax.delta[lane];", "const T d = shared.gap[lane];"),
    _cpu("inner_products", "out[j] += sums[j];", "out[j] = sums[j];"),
    _cpu("coverage_gain", "gains[r] += double(fold(sums[r]));", "gains[r] = double(fold(sums[r]));"),
    _cpu("coverage_gain", "cover_parts<kRows / 2>(rows, begin + kRows * step, end);", ""),
    _cpu("kernel_coverage", "(excess > T(0) ? T(0) : excess) * scale", "excess * scale"),
    _cpu("kernel_coverage", "packed[i * kPanel<T> + j] = line[j];", "packed[i * kPanel<T> + j] = line[0];"),
    _cpu(
        "kernel_coverage",
        "gains[row] += partial[index * n_rows + row];",
        "gains[row] = partial[index * n_rows + row];",
    ),
    # Kernels for CUDA, on the emulator.
    _cuda("rank_one_update", "result[j] = row[j] - shrinkage * product;", "result[j] = row[j] - product;"),
    _cuda("predictive", "__syncthreads();  // the next tile overwrites this one", ""),
    _cuda(
        "predictive",
        "values[i] = exp_nonpositive((values[i] - best) * link);",
        "values[i] = exp_nonpositive(values[i] - best);",
    ),
    _cuda(
        "bait_step_",
        "q += shrunk * (shrunk * fisher_norm - T(2) * rows.along_w[n]);",
        "q += shrunk * (shrunk * fisher_norm - rows.along_w[n]);",
    ),
    _cuda("badge_step_", "const T computed = norms - T(2) * product;", "const T computed = norms + T(2) * product;"),
    _cuda("nearest_distance_", "- points[i]) * factors[i];", "- points[i]);"),
    _cuda("update_coefficients", "sums.second += k == target ? 0.0 : term;", "sums.second += term;"),
    _cuda("kernel_coverage", "if (col < n_references) {", "if (col <= n_references) {"),
    _cuda(
        "kernel_coverage",
        "gains[i] += weight * (gain < T(0) ? T(0) : gain);",
        "gains[i] += gain < T(0) ? T(0) : weight;",
    ),
    _cuda("coverage_gain", "__syncthreads();  // the sums of the next rows overwrite these", ""),
    _cuda("utility", "__syncthreads();  // the next tile overwrites this one", ""),
    # What is picked.
    _selection(
        "selection/label_sources.py",
        "return scorer.predictive(picks).argmax(1)",
        "return scorer.predictive(picks).argmin(1)",
        "selection/test_select_batch.py",
    ),
    _selection(
        "selection/label_sources.py",
        "running[:, -1:]).int().argmax(1)",
        "running[:, :1]).int().argmax(1)",
        "selection/test_select_batch.py",
    ),
    _selection(
        "selection/sequential_selector.py",
        "for event in progress.record.standing:",
        "for event in (e for e in progress.record.standing if len(e.picks) == 1):",
        "selection/test_sequential_selector.py",
        "acquisition/test_every_acquisition.py",
    ),
    _selection(
        "selection/sequential_selector.py",
        "Record(events[:-1])",
        "Record(events[1:])",
        "selection/test_sequential_selector.py",
    ),
    _selection(
        "selection/answers.py",
        "pick not in forgotten and (pick, annotator) not in replaced",
        "(pick, annotator) not in replaced",
        "selection/test_changed_answers.py",
    ),
    _selection(  # a released row is missing in a list that was made before
        "acquisition/herding.py",
        "self._gains = self._gains.copy()",
        "pass",
        "selection/test_interrupted_selector.py",
    ),
    _selection(
        "acquisition/herding.py",
        "self._covered = torch.maximum(self._covered, self._coverage_by(picks))",
        "self._covered = self._covered.clone()",
        "acquisition/test_herding.py",
    ),
    _selection(
        "acquisition/lazy_gains.py",
        "highest.values >= best * self._reach",
        "highest.values >= best * 1.5",
        "acquisition/test_lazy_gains.py",
        "acquisition/test_herding.py",
    ),
    _selection(
        "acquisition/herding.py",
        "self._gains = None  # where",
        "pass  # where",
        "acquisition/test_herding.py",
    ),
    _selection(  # the scorer stays in the selector while a call changes it
        "selection/sequential_selector.py",
        "self._progress = progress._replace(scorer=None)\n        if",
        "if",
        "selection/test_interrupted_selector.py",
    ),
    _selection(
        "acquisition/coreset.py",
        "self._add_centres(mean, nearest.clone(), self._taken)",
        "self._add_centres(mean, nearest, self._taken)",
        "acquisition/test_coreset.py",
    ),
    _selection(
        "acquisition/bald.py",
        "0.5 * ((v * others).log1p().sum(1) + spread.log1p())",
        "0.5 * (v * others).log1p().sum(1)",
        "acquisition/test_bald.py",
    ),
    _selection(
        "acquisition/badge.py", "distance[self._taken] = 0.0", "pass", "selection/test_select_batch.py", "acquisition"
    ),
    _selection(
        "acquisition/bait.py", "/ max(pool.shard.total, 1)", "/ max(len(pool) - 1, 1)", "acquisition/test_bait.py"
    ),
    _selection("acquisition/probcover.py", "_PURITY = 0.95", "_PURITY = 0.5", "acquisition/test_probcover.py"),
    _selection(  # decided by float32 where its rounding matters
        "acquisition/close_rows.py",
        "unsure = ((squares - squared).abs() <= band)",
        "unsure = ((squares - squared).abs() < 0.0)",
        "acquisition/test_close_rows.py",
    ),
    _selection("acquisition/power_margin.py", "smallest).log_()", "smallest)", "acquisition/test_power_margin.py"),
    _selection(
        "lookahead/expected_error_reduction.py",
        "(probabilities.double() * sums.view(len(x), n_classes)).sum(1)",
        "sums.view(len(x), n_classes).mean(1)",
        "lookahead/test_look_ahead.py",
    ),
    _selection(
        "posterior/updating.py",
        "if not well_conditioned:",
        "if False:",
        "posterior/test_updating.py",
        "ops/test_absorb_labels.py",
        "fuzz/test_damaged_posteriors.py",
        "fuzz/test_numerics.py",
    ),
    # What is kept on disk.
    _file(
        "posterior/state.py",
        'if header.pop("sha256", None) != _checksum(tensors, header):',
        'if header.pop("sha256", None) is None:',
        "posterior/test_state.py",
    ),
    _file(
        "posterior/state.py",
        'if header.get("version") != str(_VERSION):',
        "if False:",
        "posterior/test_state.py",
        "fuzz/test_damaged_posteriors.py",
    ),
    _file(
        "atomic_file.py",
        "        write(scratch)\n",
        "        write(path)\n        write(scratch)\n",
        "fuzz/test_persistence.py",
    ),
    _file("atomic_file.py", "not _runs(int(found[1]))", "True", "test_atomic_file.py"),
    _file(
        "features/cache.py", "if foreign or checksum != _checksum(journal):", "if foreign:", "features/test_cache.py"
    ),
    _file("features/cache.py", "file.verify(self.done, sha256)", "pass", "features/test_cache.py"),
    _file(
        "features/growing_file.py",
        "os.truncate(self._partial, _HEAD_BYTES + rows * self._row_bytes)",
        "pass",
        "features/test_resume.py",
        "features/test_cache.py",
    ),
    _file(
        "features/cache.py",
        "self.done += len(features)\n        self._write_journal()",
        "self._write_journal()\n        self.done += len(features)",
        "features/test_resume.py",
    ),
    # The command.
    _command("select/label_file.py", "if self._on_disk() != self._content:", "if False:", "cli/select"),
    _command("select/label_file.py", "if key in seen:", "if False:", "cli/select"),
    _command("select/label_file.py", 'self._opening = "\\n", ""', 'self._opening = "\\r\\n", ""', "cli/select"),
    _command("text_files.py", '.endswith(b"\\r")', '.endswith(b"?")', "cli/select/test_label_file.py"),
    _command("predict.py", "low <= square <= high", "True", "cli/test_extract_and_predict.py"),
    _command("select/questions.py", "self._selector.forget(row)\n", "pass\n", "cli/select/test_changed_answers.py"),
    _command(
        "select/questions.py", "self._selector.forget(corrected.row)", "pass", "cli/select/test_changed_answers.py"
    ),
    _command("select/questions.py", "        self._tell(corrected)\n", "", "cli/select/test_changed_answers.py"),
    _command(
        "select/terminal.py",
        "        try:\n            file.write([*given, *unanswered])",
        "        try:\n            pass",
        "cli/select/test_terminal.py",
    ),
    _command("select/pool_record.py", "!= self._of_ids[name]]", "is None]", "cli/select/test_rows_by_name.py"),
    _command(
        "select/annotators.py",
        " if more or not any(line.waits for line in file.lines)",
        "",
        "cli/select/test_annotators.py",
    ),
    _command("select/annotators.py", " and line.row not in present", "", "cli/select/test_annotators.py"),
    _command("select/annotators.py", "_owed(files, place)[:number]", "[]", "cli/select/test_annotators.py"),
    _command("select/batch.py", "        file.check_unchanged()\n", "        pass\n", "cli/select/test_annotators.py"),
    _command(
        "select/label_file.py", "else line.row), line.annotator", 'else line.row), ""', "cli/select/test_annotators.py"
    ),
    _command("select/questions.py", "line.label, line.trust)", "line.label)", "cli/select/test_annotators.py"),
    _command(
        "select/start.py", "len(answered) >= len(self.classes)", "len(answered) > 0", "cli/select/test_from_no_label.py"
    ),
    _command("select/display.py", 'in ("Cc", "Cs")', 'in ("Cs",)', "cli/select/test_terminal.py"),
    _command(
        "select/start.py",
        "calibrate(self._prior(), features[first], labels[first])",
        "Calibration(1.0, 0.0)",
        "cli/select",
    ),
    _command("select/start.py", "features[first], labels[first]", "features, labels", "cli/select/test_annotators.py"),
    _command("select/start.py", '"joint", trust)', '"joint")', "cli/select/test_annotators.py"),
    _command("select/start.py", "labels, gamma=trust)", "labels)", "cli/select/test_annotators.py"),
    _command(
        "select/start.py",
        "self._around_head().condition_on(features, labels, gamma=trust)",
        "self._around_head()",
        "cli/select/test_label_file.py",
    ),
    _command("select/questions.py", " / self._temperature(answers)", "", "cli/select/test_terminal.py"),
    _command("select/questions.py", "_GROWTH = 1.2", "_GROWTH = 1.3", "cli/select/test_terminal.py"),
    _command("select/label_file.py", "[*lines, *self.gone]))", "lines))", "cli/select/test_terminal.py"),
    _reference("posterior/calibration.py", "_MOST_ROWS = 1000", "_MOST_ROWS = 10_000", "posterior/test_calibration.py"),
    _command("saved_model.py", 'saved["model"] == _checksum(path)', "True", "cli/test_extract_and_predict.py"),
    _reference("posterior/calibration.py", "torch.isin(y, y[~out]) & out", "out", "posterior/test_calibration.py"),
    _reference("posterior/calibration.py", "max(0.0, _OWN * (1.0 - ratio))", "1.0", "posterior/test_calibration.py"),
    _command("select/label_studio_file.py", "elif len(tasks.exported) != pool_rows:", "elif False:", _STUDIO[0]),
    _file("interop/label_studio/annotations.py", 'annotation.get("was_cancelled")', "False", _STUDIO[1]),
    _file("interop/label_studio/annotations.py", "if len(chosen) != 1 or", "if not chosen or", _STUDIO[1]),
    _file("interop/label_studio/tasks.py", "(timed[0], timed[1].annotation)", "timed[1].annotation", _STUDIO[1]),
    _file("interop/label_studio/tasks.py", "kept.pop((answer.row, answer.annotator), None)", "pass", _STUDIO[1]),
    _file("interop/label_studio/predictions.py", '"score": place / ', '"score": 1 - place / ', _STUDIO[1]),
    _command("items.py", "if n_lines != n_rows:", "if n_lines < n_rows:", "cli/select"),
    _command("select/classes.py", "if name in self.names:", "if False:", "cli/select"),
)
