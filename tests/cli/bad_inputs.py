"""Bad inputs to every command, and the words that the one line about each has to have.

A row is `command line | words, & more words`; rows of one table run in one folder, which `test_bad_input.py` fills.
"""

# ruff: noqa: E501

FIT_MODEL = r"""
--model.config.layer_pattern '1*x'            | model.config.layer_pattern & unknown symbol 'x' at index 2 & '1' (mamba1)
--model.config.layer_pattern 12               | symbol '2' at index 1 stands for mamba2 & available
--model.config.layer_pattern ''               | model.config.layer_pattern is empty & such as '1'
--model.config.d_model abc                    | model.config.d_model must be a whole number & 'abc'
--model.config.d_model 0                      | model.config.d_model must be positive & got 0
--model.config.d_model 100000000000000000000  | model.config.d_model must be at most 2,147,483,647 & 100000000000000000000
--model.config.mamba1.d_state 1               | model.config.mamba1.d_state must be one of 4, 8, 16 & got 1
--model.config.mamba1.d_state 2               | model.config.mamba1.d_state must be one of 4, 8, 16 & got 2
--model.config.mamba1.d_conv 9                | model.config.mamba1.d_conv must be between 2 and 8 & got 9
--model.config.norm_eps nan                   | model.config.norm_eps must be a number & 'nan'
--model.config.attention.num_heads 5          | model.config.d_model (32) is not divisible by attention.num_heads (5)
--model.config.attention.num_head 2           | unknown option --model.config.attention.num_head & did you mean --model.config.attention.num_heads?
--model.config.symbols '{w: {kind: atention}}' | symbols.w: unknown kind 'atention' & mamba1, attention, mlp & did you mean 'attention'?
--model.config.tie_embeddings maybe           | model.config.tie_embeddings must be true or false & 'maybe'
--model.config.layer_pattern 1 --model.config.attention.num_heads 2 | model.config.attention.num_heads does nothing & '1' has no layer of that kind
--model.compute.recompute convs               | model.compute.recompute must be none, conv or block & 'convs' & did you mean 'conv'?
--model.compute.attention_backend varlen --trainer.accelerator cpu | model.compute.attention_backend 'varlen' cannot run & use 'sdpa' or 'auto'
--model.learning_rat 1                        | unknown option --model.learning_rat & did you mean --model.learning_rate?
--model.depth 3                               | unknown option --model.depth & `packmamba fit --help`
--model.betas '[0.9]'                         | model.betas must be a list of 2 & [0.9]
--model foo                                   | model takes options such as --model.c & 'foo'
"""

FIT_TRAINER = r"""
--trainer.max_step 3                          | unknown option --trainer.max_step & did you mean --trainer.max_steps?
--max_steps 3                                 | unknown option --max_steps & did you mean --trainer.max_steps?
--trainer.max_steps 0                         | trainer.max_steps must be from 1 & -1 for no limit & got 0
--trainer.max_steps 100000000000000000000     | trainer.max_steps must be from 1 to 2^63 - 1 & got 100000000000000000000
--trainer.max_steps 1e3                       | trainer.max_steps must be a whole number & write 1000
--trainer.max_epochs -3                       | trainer.max_epochs must be from 1 & got -3
--trainer.max_time soon                       | trainer: & 'soon' & DD:HH:MM:SS
--trainer.log_every_n_steps 0                 | trainer.log_every_n_steps must be a whole number of at least 1 & got 0
--trainer.accumulate_grad_batches 0           | trainer.accumulate_grad_batches must be a whole number of at least 1 & got 0
--trainer.gradient_clip_val -1                | trainer.gradient_clip_val must be 0 (no clipping) or more & got -1
--trainer.val_check_interval 0                | trainer.val_check_interval must be & from 1 up & got 0
--trainer.check_val_every_n_epoch 0           | trainer.check_val_every_n_epoch must be a whole number of at least 1 & got 0
--trainer.limit_train_batches 0               | trainer.limit_train_batches must be & got 0
--trainer.accelerator tpux                    | trainer.accelerator must be one of auto, cpu, cuda & 'tpux' & did you mean 'tpu'?
--trainer.devices 0                           | trainer.devices must be a number from 1 & got 0
--trainer.devices 99999                       | trainer.devices must be a number from 1 & got 99999
--trainer.precision bf17-mixed                | trainer.precision must be & bf16-mixed & 'bf17-mixed' & did you mean 'bf16-mixed'?
--trainer.precision 16-mixed                  | trainer.precision 16-mixed does not run on the CPU & use bf16-mixed
--trainer.strategy dddp                       | trainer.strategy must be & auto, ddp & 'dddp' & did you mean 'ddp'?
--trainer.strategy fsdp                       | trainer.strategy 'fsdp' needs GPUs & on the CPU use auto or ddp
--trainer.profiler foo                        | trainer.profiler must be one of simple, advanced, pytorch, xla & 'foo'
--trainer.logger Foo                          | trainer.logger: there is no class 'Foo' & CSVLogger
--trainer.default_root_dir docs.jsonl         | trainer.default_root_dir 'docs.jsonl' is a file, not a folder
--seed_everything -1                          | seed_everything must be from 0 to 4294967295 & got -1
--seed_everything abc                         | seed_everything must be true, false or a whole number & 'abc'
--name ''                                     | --name '' does not name a folder & 'tiny'
--name ../../x                                | --name '../../x' does not name a folder & 'tiny'
--best_checkpoint.monitor val/los             | best_checkpoint.monitor must be & val/perplexity & 'val/los' & did you mean 'val/loss'?
--last_checkpoint.every_n_train_steps -1      | last_checkpoint.every_n_train_steps must be at least 0 & got -1
"""

FIT_DATA = r"""
--data.capasity 64                            | unknown option --data.capasity & did you mean --data.capacity?
--data.capacity 1                             | data.capacity must be from 2 tokens & got 1
--data.capacity 100000000000000000000         | data.capacity must be from 2 tokens & 2,147,483,647 & got 100,000
--data.strategy best_fit                      | data.strategy must be sequential, local_greedy & 'best_fit' & did you mean 'best_fit_decreasing'?
--data.embeddings nothing.npy                 | data.embeddings 'nothing.npy': there is no such file & .npy
--data.embeddings good.npy                    | data.embeddings good.npy does nothing & data.strategy is best_fit_decreasing & threshold_filtering
--data.buffer 5                               | data.buffer 5 does nothing & only local_greedy has a buffer
--data.threshold_filtering.block 3            | data.threshold_filtering.block 3 does nothing & only threshold_filtering
--data.section_documents 5                    | data.section_documents 5 does nothing & data.source is not streamed
--data.max_val_documents 5 --data.val_fraction 0 | data.max_val_documents 5 does nothing & no validation documents
--data.chat_template nothing.jinja            | there is no chat template 'nothing.jinja' & name a Jinja file
--data.chat_template template.jinja           | data.chat_template template.jinja does nothing & no source has conversations & messages_column
--data.balance flops --model.config.layer_pattern 11 | data.balance 'flops' & the model has no attention layer & use tokens
--data.val_fraction 1                         | data.val_fraction must be at least 0 and below 1 & got 1.0
--data.seed -1                                | data.seed must be at least 0 & got -1
--data.cache_dir docs.jsonl                   | data.cache_dir 'docs.jsonl' is a file, not a folder
--data.source Fils                            | data.source: there is no class 'Fils' & PythonDocs & did you mean 'Files'?
--data.source.init_args.pahts '[docs.jsonl]'  | data.source.pahts: Files has no option 'pahts' & did you mean 'paths'?
--data.source Mixture                         | data.source Mixture needs --data.source.sources and --data.source.weights
--data.source.init_args.paths '[nothing.jsonl]' | no file matches 'nothing.jsonl'
--data.source.init_args.paths '[single.jsonl]' --data.tokenizer.init_args.add_eos false | is a single token & nothing can be predicted & need two at least
--data.tokenizer.init_args.add_bos maybe      | data.tokenizer.add_bos must be true or false & 'maybe'
--data.attention_costs '[]'                   | data.attention_costs is worked out from model.config & leave it out
"""

FIT_FILES = r"""
fit                                           | no model is given & --config FILE & quickstart
fit --confg config.yaml                       | no model is given & did you mean --config
fit config.yaml                               | no model is given & did you mean --config config.yaml?
fit --model.config.d_model 32                 | model.config.layer_pattern is not set & give model.config.layer_pattern
fit --config quikstart                        | 'quikstart' & did you mean 'quickstart'?
fit --config folder                           | 'folder' is a folder & quickstart
fit --config broken.yaml                      | broken.yaml, line 2, column 12 & no YAML
fit --config tab.yaml                         | tab.yaml, line 2, column 1 & indent with spaces, not tabs
fit --config alias.yaml                       | alias.yaml, line 1 & begins with * is an alias in YAML: quote it
fit --config binary.yaml                      | cannot read 'binary.yaml' & no text (UTF-8)
fit --config good.ckpt                        | cannot read 'good.ckpt' & a checkpoint is named by --ckpt_path
fit --config empty.yaml                       | empty.yaml is no configuration: it is empty & model: and data:
fit --config list.yaml                        | list.yaml is no configuration: it holds [1, 2]
fit --config unquoted.yaml                    | model.config.layer_pattern must be text & 1111 & quote it, layer_pattern: "1111"
fit --config typo.yaml                        | typo.yaml: unknown option data.capasity & did you mean data.capacity?
fit --config typo_top.yaml                    | typo_top.yaml: unknown option modle & did you mean 'model'?
fit --config typo_field.yaml                  | model.config: & no field 'd_modle' & did you mean 'd_model'?
fit --config config.yaml --documents 3        | unknown option --documents & `packmamba quickstart`
fit --config config.yaml extra                | unexpected 'extra' & options begin with --
"""

CHECKPOINTS = r"""
fit --config config.yaml --ckpt_path nothing.ckpt    | 'nothing.ckpt' does not exist & .ckpt)
fit --config config.yaml --ckpt_path best            | ckpt_path 'best' is no file & give a checkpoint's path
fit --config config.yaml --ckpt_path good.ckpt --model.config.d_model 64 | another model configuration & 32 in the checkpoint, 64 in this run
validate --config config.yaml                        | validate needs the weights & --ckpt_path FILE & --untrained
test --config config.yaml                            | test needs the weights & --ckpt_path FILE & --untrained
predict --config config.yaml                         | predict needs the weights & --ckpt_path FILE & --untrained
validate --config config.yaml --untrained --ckpt_path good.ckpt | --untrained & --ckpt_path 'good.ckpt' & leave one out
validate --config config.yaml --ckpt_path empty.ckpt | 'empty.ckpt' & it is empty & good.ckpt
validate --config config.yaml --ckpt_path cut.ckpt   | 'cut.ckpt' & cut off & good.ckpt
test --config config.yaml --ckpt_path flipped.ckpt   | 'flipped.ckpt' & damaged & good.ckpt
predict --config config.yaml --ckpt_path foreign.ckpt | ckpt_path 'foreign.ckpt' is no checkpoint of packmamba
predict --config config.yaml --ckpt_path other.ckpt  | ckpt_path 'other.ckpt' holds no model configuration
test --config config.yaml --ckpt_path folder         | 'folder' & folder
test --config config.yaml --ckpt_path config.yaml    | 'config.yaml' & no checkpoint
validate --config config.yaml --ckpt_path good.ckpt --data.tokenizer.init_args.add_bos true | data.tokenizer was 'bytes, add_bos=False & and is 'bytes, add_bos=True & --allow_other_data
validate --config config.yaml --ckpt_path good.ckpt --data.seed 3 | data.seed was 0 and is 3 & --allow_other_data
predict --config config.yaml --ckpt_path good.ckpt --data.val_fraction 0.5 | data.val_fraction was 0.2 and is 0.5 & --allow_other_data
validate --config config.yaml --ckpt_path good.ckpt --data.source.init_args.paths '[docs.jsonl, single.jsonl]' | the documents of data.source have changed & data.val_source & --allow_other_data
validate --config config.yaml --untrained --data.val_fraction 0 | no val documents & val_fraction above 0, or val_source
validate --config config.yaml --ckpt_path good.ckpt --documents 3 | unknown option --documents & `packmamba quickstart`
predict --config config.yaml --ckpt_path good.ckpt --return_prediction 3 | unknown option --return_prediction & did you mean --return_predictions?
test --config config.yaml --ckpt_path good.ckpt --trainer.devices many | trainer.devices must be a number from 1 & many
"""

OTHERS = r"""
quickstart --config quikstart                 | 'quikstart' & did you mean 'quickstart'?
quickstart --documents 0                      | --documents must be a whole number of at least 1 & '0'
quickstart --document 3                       | unknown option --document & did you mean --documents?
quickstart --config config.yaml --trainer.max_step 3 | unknown option --trainer.max_step & did you mean --trainer.max_steps?
quickstart --config config.yaml --trainer.logger false | leave trainer.logger unset
pack --lengths nothing.npy                    | there is no file of lengths 'nothing.npy'
pack --lengths bad.npy                        | 'bad.npy' & no array of numbers
pack --distribution lognorma                  | 'lognorma' & uniform & did you mean 'lognormal'?
pack --distribution uniform --documents many  | --documents must be a whole number of at least 1 & 'many'
pack --distribution uniform --capacity 0      | --capacity must be a whole number of at least 1 & '0'
pack --distribution uniform --seed -1         | --seed must be 0 or more & got -1
pack --distribution uniform --strategies best_fit | 'best_fit' & wrapped & did you mean 'best_fit_decreasing'?
pack --distribution uniform --balance flop    | --balance must be tokens, flops or none & 'flop' & did you mean 'flops'?
pack --distribution uniform --split val       | --split does not go with --distribution
pack --distribution uniform --json folder     | 'folder' is a folder & name a file
pack --distribution uniform --json nothing/x.json | there is no folder 'nothing'
pack --capasity 3                             | unknown option --capasity & did you mean --capacity?
pack --config config.yaml --data.capasity 3   | unknown option --data.capasity & did you mean --data.capacity?
pack --config broken.yaml                     | broken.yaml, line 2, column 12 & no YAML
pack --config typo.yaml                       | typo.yaml: unknown option data.capasity & did you mean data.capacity?
tokenizer                                     | a subcommand is missing & train
tokenizer trian                               | unknown subcommand 'trian' & did you mean 'train'?
tokenizer train                               | --output must be given
tokenizer train --output new --vocab_size 10  | vocab_size must be at least 260 & got 10
tokenizer train --output new --vocab_siz 300  | unknown option --vocab_siz & did you mean --vocab_size?
tokenizer train --output new --max_documents few | max_documents must be a whole number or null & 'few'
tokenizer train --output new --source Fils    | source: there is no class 'Fils' & PythonDocs & did you mean 'Files'?
tokenizer train --output folder               | 'folder' is there already & name a new folder
compare --models hybrid-tini --device cpu     | unknown model 'hybrid-tini' & did you mean 'hybrid-tiny'?
compare --modes packd --device cpu            | unknown mode 'packd' & padded_sorted & did you mean 'packed'?
compare --modes packed:foo --device cpu       | 'packed:foo' & unknown strategy 'foo' & best_fit_decreasing
compare --capacity 0                          | --capacity must be a whole number of at least 1 & '0'
compare --precision 8                         | --precision must be 32-true, bf16-mixed or bf16-true & '8'
compare --lengths foo --device cpu            | unknown lengths 'foo' & lognormal
compare --layer-patterns 1x --device cpu      | layer_pattern '1x': unknown symbol 'x' at index 1
compare --output docs.jsonl --device cpu      | --output 'docs.jsonl' is a file, not a folder
compare --mode packed                         | unknown option --mode & did you mean --mode
compare --config config.yaml                  | unknown option --config & `packmamba fit`
info --device tpu                             | --device must be cpu or cuda & 'tpu'
info --jsn                                    | unknown option --jsn & did you mean --json?
fti                                           | unknown command 'fti' & did you mean 'fit'?
--versoin                                     | unknown command '--versoin' & quickstart
"""
