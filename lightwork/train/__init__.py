"""Training of models from nothing: a next-token trainer, the tokenizer it reads with, and the folder it
writes.

pretrain.py    `pretrain(weights, spec, batches, settings)`: AdamW with warm-up and cosine, over any source of
batches
streamed.py    `StreamedLayers(...).loss`: the same for layers most of which are elsewhere
initial.py     fresh weights for a ModelSpec
vocabulary.py  a tokenizer over given words, with bytes for everything else
export.py      a folder in Hugging Face layout
moe.py         models of experts: a loss that keeps them equally busy
prompt_tokens.py  embeddings that ask a frozen model what it will say some tokens on, from own_texts.py
duo.py         models whose MLPs are big, small or left out by token, randomly routed; duo_router.py: gates
               for them, from what oracles find
seq2seq.py     encoder-decoders, on pairs of texts; block_drafter.py: such that fill masks

To add a way of training: one file here, over `models.transformer.forward`.
"""
