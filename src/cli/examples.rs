//! The examples at the end of each command's help. A test has the command line parse every one of them.

/// Of the program as a whole.
pub const ATTAR: &str = "\
Examples:
  What a file is, and what was done to it:
    attar inspect model-Q4_K_M.gguf
  A file for llama.cpp out of a Hugging Face folder, with its price in perplexity and KL divergence:
    attar quantize Qwen3-4B -o qwen3-4b-q4_k_m.gguf --scheme q4_k_m
  Several stages and outputs, in one table:
    attar run recipes/laptop-chat.toml";

pub const INSPECT: &str = "\
Examples:
  What a model is, and what each scheme would make of it:
    attar inspect Qwen3-4B
  What someone did to a file, with every tensor; also of kinds of models that attar does not run:
    attar inspect model-Q4_K_M.gguf -v
  The same for a program to read:
    attar inspect model.safetensors.index.json --json model.json";

pub const QUANTIZE: &str = "\
Examples:
  A file for llama.cpp:
    attar quantize Qwen3-4B -o qwen3-4b-q4_k_m.gguf --scheme q4_k_m
  A folder for vLLM, calibrated on own text:
    attar quantize Qwen3-4B -o qwen3-4b-w4 --scheme w4a16-g128 --calib chats.txt --calib-tokens 262144
  By an importance matrix that there is already:
    attar quantize Qwen3-4B -o qwen3-4b-q4_k_m.gguf --scheme q4_k_m --imatrix qwen3-4b.imatrix.gguf
  As little damage as a file of this size allows, a type chosen for each tensor by measuring:
    attar quantize Qwen3-4B -o qwen3-4b.gguf --target-size 2.4GB --calib chats.txt
  More bits for the tensors that need them, and a report in every form:
    attar quantize Qwen3-4B -o q4.gguf --scheme q4_k_s --tensor 'ffn_down=q6_k' --report report";

pub const PRUNE: &str = "\
Examples:
  Three fifths of the parameters, the shape found by measuring:
    attar prune Qwen3-4B -o smaller --target-params 0.6
  A shape that is named:
    attar prune Qwen3-4B -o smaller --layers 28 --ffn 0.75
  Zeros in place of a smaller shape, two of every four weights:
    attar prune Qwen3-4B -o sparse --sparsity 2:4";

pub const CONVERT: &str = "\
Examples:
  A folder as one GGUF file, its floats as they are:
    attar convert Qwen3-4B -o qwen3-4b.gguf
  And back:
    attar convert qwen3-4b.gguf -o qwen3-4b
  A folder of GPTQ or AWQ for llama.cpp, its codes as they are, and a file for vLLM:
    attar convert qwen3-4b-gptq -o qwen3-4b-q4_0.gguf
    attar convert qwen3-4b-q4_0.gguf -o qwen3-4b-awq --format awq
  A file in parts of 2 GB, and parts in one file:
    attar convert qwen3-4b-q4_k_m.gguf -o parts/qwen3-4b-q4_k_m.gguf --split-max-size 2GB
    attar convert parts/qwen3-4b-q4_k_m-00001-of-00002.gguf -o whole.gguf";

pub const EVAL: &str = "\
Examples:
  Perplexity as llama-perplexity has it:
    attar eval model-q4_k_m.gguf --text wiki.test.raw
  What quantizing did to it, against the original:
    attar eval model-q4_k_m.gguf --text wiki.test.raw --reference Qwen3-4B
  The original run once and kept, then compared with as often as need be:
    attar eval Qwen3-4B --text wiki.test.raw --save-reference qwen3-4b.kept
    attar eval model-q4_k_m.gguf --text wiki.test.raw --reference qwen3-4b.kept
  Questions, scored as lm-evaluation-harness scores them:
    attar eval model-q4_k_m.gguf --task arc_easy.jsonl --items 200 --reference Qwen3-4B";

pub const COMPARE: &str = "\
Examples:
  What each scheme costs, on one table and one plot:
    attar compare Qwen3-4B --schemes q8_0,q6_k,q4_k_m,w4a16-g128 -o compared
  Beside files that other programs made of the same model:
    attar compare Qwen3-4B --schemes q4_k_m --files their-q4_k_m.gguf --text wiki.test.raw -o compared";

pub const IMATRIX: &str = "\
Examples:
  A matrix for llama-quantize, or for attar quantize --imatrix:
    attar imatrix Qwen3-4B --text wiki.train.raw -o qwen3-4b.imatrix.gguf
  Of several texts, one of which counts twice:
    attar imatrix Qwen3-4B --text wiki.txt --text chats.jsonl=2 -o qwen3-4b.imatrix.gguf
  Files of earlier runs together, in the old layout:
    attar imatrix --merge first.imatrix.gguf second.imatrix.gguf -o both.dat";

pub const CHECK: &str = "\
Examples:
  Write down what a model scores now:
    attar check model-q4_k_m.gguf --reference Qwen3-4B --baseline scores.json --update-baseline
  Fail with exit code 1 where it has become worse than that:
    attar check model-q4_k_m.gguf --baseline scores.json
  Limits of its own, with a report for CI:
    attar check model-q4_k_m.gguf --reference Qwen3-4B --max-kl 0.05 --min-top1 95% --junit check.xml";

pub const DISTILL: &str = "\
Examples:
  What was pruned learns from what it was cut out of:
    attar distill --teacher Qwen3-4B --student smaller -o taught --data text.txt --tokens 20000000
  Cut and taught in one command:
    attar distill --teacher Qwen3-4B --init-from-teacher --ffn 0.5 -o taught --data text.txt
  A student that sees its weights as they will be stored:
    attar distill --teacher Qwen3-4B --student Qwen3-4B -o taught.gguf --data chats.jsonl --scheme q4_k_m";

pub const RUN: &str = "\
Examples:
  What a recipe comes to, before anything is done:
    attar run recipes/pruned-and-distilled.toml --dry-run
  All of it, and going on after it was interrupted:
    attar run recipes/pruned-and-distilled.toml
    attar run recipes/pruned-and-distilled.toml --resume";

pub const REPORT: &str = "\
Examples:
  What changed from one quantization to the next:
    attar report before.json after.json
  A page of several, side by side:
    attar report a.json b.json c.json --report compared
  For a pull request:
    attar report small.json --format markdown > small.md";

pub const COMPLETIONS: &str = "\
Examples:
  For bash, in this shell and in those to come:
    attar completions bash > ~/.local/share/bash-completion/completions/attar
  For zsh and for fish:
    attar completions zsh > ~/.zfunc/_attar
    attar completions fish > ~/.config/fish/completions/attar.fish";

pub const MAN: &str = "\
Examples:
  A page for each command where man finds them:
    attar man ~/.local/share/man/man1
  The page of the program itself, read at once:
    attar man | man -l -";
