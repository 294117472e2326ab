//! What `attar inspect` says of files that attar does not run.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::gguf::{self, Array, Value};
use attar_checkpoint::{Dtype, GgmlType, TensorInfo};
use serde_json::json;

use crate::forge;
use crate::place::Place;

/// Names, types, shapes and bytes.
type Tensors<'a> = &'a [(&'a str, &'a str, &'a [u64], u64)];

fn write_gguf(path: &Path, metadata: &[(&str, Value)], tensors: &[TensorInfo]) {
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let mut writer = gguf::Writer::create(path, Overwrite::Yes, &metadata, tensors).unwrap();
    for tensor in tensors {
        writer.write(&tensor.name, &vec![0; tensor.bytes as usize]).unwrap();
    }
    writer.finish().unwrap();
}

fn ggml(name: &str, ggml: GgmlType, shape: &[usize]) -> TensorInfo {
    TensorInfo::new(name, Dtype::from(ggml), shape)
}

#[track_caller]
fn says(place: &Place, what: &str, parts: &[&str]) -> String {
    let text = place.done(&format!("inspect {what}"));
    // The lines may be wrapped anywhere.
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(words.contains(part), "no `{part}` in:\n{text}");
    }
    text
}

/// A mixture-of-experts model of an architecture nobody knows, in types attar does not decode, made with an imatrix.
#[test]
fn a_foreign_architecture_in_foreign_types() {
    let place = Place::new();
    let metadata = [
        ("general.architecture", Value::from("unheard")),
        ("general.name", Value::from("Unheard 1B")),
        ("general.quantized_by", Value::from("somebody")),
        ("general.file_type", Value::U32(30)),
        ("unheard.block_count", Value::U32(4)),
        ("unheard.context_length", Value::U32(4096)),
        ("quantize.imatrix.file", Value::from("unheard.imatrix")),
        ("quantize.imatrix.dataset", Value::from("chats.txt")),
        ("quantize.imatrix.entries_count", Value::I32(12)),
        ("quantize.imatrix.chunks_count", Value::I32(88)),
        ("tokenizer.ggml.model", Value::from("gpt2")),
        ("tokenizer.ggml.pre", Value::from("llama-bpe")),
        ("tokenizer.ggml.tokens", Value::from(vec!["a".to_owned(), "b".to_owned()])),
        ("tokenizer.chat_template", Value::from("{{ messages }}")),
    ];
    let tensors: Vec<TensorInfo> = [0, 1, 3]
        .into_iter()
        .flat_map(|layer| {
            let down = if layer == 3 { GgmlType::Iq4Xs } else { GgmlType::Q6K };
            [
                ggml(&format!("blk.{layer}.attn_norm.weight"), GgmlType::F32, &[256]),
                ggml(&format!("blk.{layer}.ffn_down.weight"), down, &[256, 512]),
                ggml(&format!("blk.{layer}.ffn_up.weight"), GgmlType::Iq4Xs, &[512, 256]),
            ]
        })
        .chain([ggml("token_embd.weight", GgmlType::Tq1_0, &[2, 256])])
        .collect();
    write_gguf(&place.at("unheard.gguf"), &metadata, &tensors);
    let parts = [
        "GGUF version 3",
        "architecture unheard",
        "layers 4",
        "context 4,096 tokens",
        "tokenizer gpt2, splits as llama-bpe, 2 tokens",
        "chat template yes",
        "name Unheard 1B",
        "quantized by somebody",
        "layers found tensors of 3, where 4 are declared; none of 2",
        "file type iq4_xs (llama.cpp's number 30)",
        "mostly iq4_xs, 4.250 bits per weight",
        "more bits blk.N.ffn_down.weight q6_k in layers 0-1",
        "imatrix unheard.imatrix, of chats.txt, 12 entries, 88 chunks",
        "shown, not run",
        "blk.N.ffn_down.weight 3 256 x 512",
        "q6_k x 2, iq4_xs x 1",
        "tq1_0",
    ];
    says(&place, "unheard.gguf", &parts);
    let all = says(&place, "unheard.gguf -v", &["blk.3.ffn_down.weight", "tokenizer.ggml.tokens"]);
    assert!(all.lines().count() > 35, "{all}");
    says(&place, "unheard.gguf --json found.json", &[]);
    let found = place.json("found.json");
    assert_eq!(found["model"]["family"], "unheard");
    assert_eq!(found["inspection"]["tensors"].as_array().unwrap().len(), 10);
    assert_eq!(found["inspection"]["metadata"]["quantize.imatrix.chunks_count"], 88);
    // The id of a type that does not exist yet.
    let mut bytes = fs::read(place.at("unheard.gguf")).unwrap();
    let name = b"token_embd.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 2 * 8;
    bytes[at..at + 4].copy_from_slice(&99u32.to_le_bytes());
    fs::write(place.at("later.gguf"), bytes).unwrap();
    says(&place, "later.gguf", &["type 99"]);
    place.refuses("eval later.gguf --text heldout.txt", &["later.gguf"]);
}

#[test]
fn a_gguf_of_another_kind_than_a_model() {
    let place = Place::new();
    let architecture = ("general.architecture", Value::from("llama"));
    let adapter = [
        architecture.clone(),
        ("general.type", Value::from("adapter")),
        ("adapter.type", Value::from("lora")),
        ("adapter.lora.alpha", Value::F32(32.0)),
    ];
    let pair = [
        ggml("blk.0.attn_q.weight.lora_a", GgmlType::F32, &[16, 256]),
        ggml("blk.0.attn_q.weight.lora_b", GgmlType::F32, &[256, 16]),
    ];
    write_gguf(&place.at("lora.gguf"), &adapter, &pair);
    says(&place, "lora.gguf", &["kind adapter", "lora, rank 16, alpha 32"]);

    let imatrix = [
        ("general.type", Value::from("imatrix")),
        ("imatrix.datasets", Value::Array(Array::String(vec!["chats.txt".to_owned()]))),
        ("imatrix.chunk_count", Value::U32(100)),
        ("imatrix.chunk_size", Value::U32(512)),
    ];
    let sums = [
        ggml("blk.0.attn_q.weight.in_sum2", GgmlType::F32, &[1, 256]),
        ggml("blk.0.attn_q.weight.counts", GgmlType::F32, &[1, 1]),
    ];
    write_gguf(&place.at("imatrix.gguf"), &imatrix, &sums);
    let parts = ["kind imatrix", "entries 1", "100 chunks of 512 tokens", "dataset chats.txt"];
    says(&place, "imatrix.gguf", &parts);

    let vocabulary = [
        architecture,
        ("tokenizer.ggml.model", Value::from("llama")),
        ("tokenizer.ggml.tokens", Value::from(vec!["a".to_owned()])),
    ];
    write_gguf(&place.at("vocab.gguf"), &vocabulary, &[]);
    says(&place, "vocab.gguf", &["vocabulary only", "tokenizer llama, 1 tokens", "chat template none"]);
}

/// Models that other tools quantized, as vLLM and transformers load them: of a family that attar knows, in forms it does not.
#[test]
fn folders_of_other_quantizers() {
    let place = Place::new();
    let cases: [(&str, serde_json::Value, Tensors<'_>, &[&str]); 4] = [
        (
            "gptq",
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true}),
            &[
                ("model.layers.0.self_attn.q_proj.qweight", "I32", &[32, 256], 32768),
                ("model.layers.0.self_attn.q_proj.qzeros", "I32", &[2, 32], 256),
                ("model.layers.0.self_attn.q_proj.scales", "F16", &[2, 256], 1024),
                ("model.layers.0.self_attn.q_proj.g_idx", "I32", &[256], 1024),
                ("lm_head.weight", "F16", &[100, 256], 51200),
            ],
            &[
                "gptq, bits 4, group_size 128, desc_act yes, sym yes",
                "parameters 91,136",
                "more bits lm_head.weight f16",
            ],
        ),
        (
            "fp8",
            json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
                   "modules_to_not_convert": ["lm_head"]}),
            &[
                ("model.layers.0.self_attn.q_proj.weight", "F8_E4M3", &[256, 256], 65536),
                ("model.layers.0.self_attn.q_proj.weight_scale_inv", "F32", &[2, 2], 16),
            ],
            &[
                "fp8, activation_scheme dynamic, weight_block_size 128 x 128; left out: lm_head",
                "mostly f8_e4m3",
            ],
        ),
        (
            "nvfp4",
            json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": ["lm_head"],
                   "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float"}}}}),
            &[
                ("model.layers.0.self_attn.q_proj.weight_packed", "U8", &[256, 128], 32768),
                ("model.layers.0.self_attn.q_proj.weight_scale", "F8_E4M3", &[256, 16], 4096),
                ("model.layers.0.self_attn.q_proj.weight_global_scale", "F32", &[1], 4),
            ],
            &["compressed-tensors, format nvfp4-pack-quantized, num_bits 4, type float", "parameters 65,536"],
        ),
        (
            "unknown-type",
            json!({"quant_method": "quark"}),
            &[("model.layers.0.self_attn.q_proj.weight", "F4", &[256, 256], 32768)],
            &["quark", "f4", "mostly f4, 4.000 bits"],
        ),
    ];
    for (name, quantization, tensors, parts) in cases {
        let model = place.at(name);
        forge::safetensors_of_zeros(&model.join("model.safetensors"), tensors, &json!({"format": "pt"}));
        let mut config = place.json("books-2m/config.json");
        config["quantization_config"] = quantization;
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        let all = [parts, &["architecture LlamaForCausalLM", "shown, not run"]].concat();
        says(&place, name, &all);
        place.fails(&format!("convert {name} -o out"), &[name]);
    }
    // A lone file is described without the configuration.
    says(&place, "gptq/model.safetensors", &["safetensors", "qweight", "a folder with a config.json"]);
}

#[test]
fn an_adapter_an_index_without_its_shards_and_a_folder_without_weights() {
    let place = Place::new();
    let adapter = place.at("adapter");
    forge::safetensors_of_zeros(
        &adapter.join("adapter_model.safetensors"),
        &[
            ("base_model.model.layers.0.q_proj.lora_A.weight", "F32", &[8, 256], 8192),
            ("base_model.model.layers.0.q_proj.lora_B.weight", "F32", &[256, 8], 8192),
        ],
        &json!({}),
    );
    let config = json!({"peft_type": "LORA", "lora_alpha": 16, "target_modules": ["q_proj"],
                        "base_model_name_or_path": "someone/base"});
    fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    says(&place, "adapter", &["lora, rank 8, alpha 16", "adapts q_proj", "made from someone/base"]);

    let sharded = forge::sharded(&place, "sharded");
    fs::remove_file(sharded.join(forge::SHARDS[1])).unwrap();
    for what in ["sharded", "sharded/model.safetensors.index.json"] {
        let text = says(&place, what, &["3 files", "missing", forge::SHARDS[1], "shown, not run"]);
        assert!(!text.contains("layers found"), "{text}");
    }

    let bare = forge::copy(&place, "bare");
    fs::remove_file(bare.join(forge::WEIGHTS)).unwrap();
    says(&place, "bare", &["a folder without weights", "LlamaForCausalLM"]);
}

#[test]
fn a_split_gguf_with_a_part_missing_and_a_folder_around_a_gguf() {
    let place = Place::new();
    fs::create_dir_all(place.at("split")).unwrap();
    for (no, name) in [(0u16, "model-00001-of-00003.gguf"), (2, "model-00003-of-00003.gguf")] {
        let metadata = [
            ("general.architecture", Value::from("unheard")),
            ("split.no", Value::U16(no)),
            ("split.count", Value::U16(3)),
        ];
        let tensors = [ggml(&format!("blk.{no}.w"), GgmlType::Q4_0, &[32, 32])];
        write_gguf(&place.at("split").join(name), &metadata, &tensors);
    }
    let parts = ["3 files", "missing", "model-00002-of-00003.gguf", "2,048"];
    says(&place, "split/model-00003-of-00003.gguf", &parts);
    place.done("quantize books-2m -o one/q4.gguf --scheme q4_k_m --method rtn --no-eval --quiet");
    says(&place, "one", &["file type q4_k_m", "llama"]);
    let own = says(
        &place,
        "one/q4.gguf",
        &[
            "family llama",
            "imatrix none is named",
            "mostly q4_k",
            "more bits token_embd.weight q6_k, blk.N.attn_v.weight q6_k in layer 1",
        ],
    );
    assert!(!own.contains("not run"), "{own}");
}

/// Twenty gigabytes that were never written: only the header is looked at.
#[test]
fn a_large_file_takes_no_longer_than_a_small_one() {
    let place = Place::new();
    let names: Vec<String> =
        (0..80).flat_map(|l| (0..4).map(move |t| format!("h.{l}.m{t}.weight"))).collect();
    let tensors: Vec<(&str, &str, &[u64], u64)> =
        names.iter().map(|name| (name.as_str(), "BF16", &[4096, 8192][..], 2 * 4096 * 8192)).collect();
    forge::safetensors_of_zeros(&place.at("large.safetensors"), &tensors, &json!({}));
    // The least of three: the machine may have other things to do.
    let took = (0..3).map(|_| {
        let started = Instant::now();
        says(&place, "large.safetensors", &["21.47 GB", "10,737,418,240", "h.N.m0.weight"]);
        started.elapsed()
    });
    let least = took.min().unwrap();
    assert!(least < Duration::from_secs(1), "{least:?}");
}
