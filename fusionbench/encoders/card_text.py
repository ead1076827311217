"""The words of NANO.md; `probe_card.py` fills in the measurements."""

TEXT = """# nano

The embedded encoder of FusionBench: a vision transformer of {layers} blocks, {dim} wide, for images
of {size} x {size} pixels ({tokens} tokens with CLS). It exists so that the whole suite runs in
minutes on a CPU, without a download. It is no feature extractor for anything else.

- Weights fingerprint: `{weights}`; licence: Apache-2.0, like the rest of the package.
- Teacher: {teacher}, fingerprint `{teacher_weights}`.
- Made by `{command}` ({minutes} minutes of one CPU thread on a busy machine, after the teacher).
- Pictures: {images}. No photographs.
  Rendered scenes are as their painters drew them then; they may have changed since.
- Recipe: {recipe}.

The last hidden state, after the final norm, was trained to give the teacher's final tokens (its
patches averaged onto nano's grid) through a linear head, a middle one the teacher's middle layer
(not averaged), an early one the pixels of its patch. The heads were thrown away. Large encoders
give up local detail on the way to meaning; one this small keeps it unless it is told to, so that
the last state also paid for what it still tells linearly of the gradients in its patch
(`detail.py`, `detail_weight`). Recipe and weight were chosen on validation examples and on rendered
scenes of no task. Train splits of the tasks and rendered scenes from seeds that no task uses were
seen; nothing that a task validates or tests on was (a test compares the hashes).

## What each layer knows

Test accuracy in percent of a logistic regression on CLS and the mean patch of one hidden state
(one regression for each question; L2 penalty chosen on val; at most {limits}).
Rendered tasks are probed with fresh scenes of their painter, which neither the task nor pretraining
uses: their own splits are too small to tell layers apart. The best layer is bold. Mean pooling
hides positions: a low number means "not linearly readable from the mean", not "absent".

{tables}

`last` is `hs[{layers}]`, `middle` the best of `hs[1]` to the one before the last, chosen on val;
`random` is an untrained twin of the same architecture, `random best` its best layer, chosen on test
(too high, if anything). The p-values are one-sided exact McNemar tests on the same n test examples.

Below 0.05 after Holm's correction over the tasks of the group:

- semantic tasks on which the last layer beats the random one: {semantic}.
- fine-detail tasks on which a middle layer beats the last: {fine}.
"""
