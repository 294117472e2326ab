//! What configurations are understood, and what is said of those that are not.

use attar_model::{AttentionScale, FAMILIES, ModelConfig, RopeScaling};
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "num_local_experts": 8, "moe_intermediate_size": 24,
    })
}

fn with(changes: &Value) -> Value {
    let mut config = llama();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(changes: &Value) -> ModelConfig {
    ModelConfig::from_hf(&with(changes)).unwrap()
}

fn refusal(changes: &Value) -> String {
    ModelConfig::from_hf(&with(changes)).unwrap_err().to_string()
}

#[test]
fn every_name_of_every_family_is_known() {
    for family in FAMILIES {
        for architecture in family.architectures {
            let changes = json!({
                "architectures": [architecture], "model_type": "other", "hidden_activation": "gelu_pytorch_tanh",
            });
            assert_eq!(read(&changes).family, *family);
        }
        for model_type in family.model_types {
            assert_eq!(read(&json!({ "architectures": null, "model_type": model_type })).family, *family);
        }
    }
}

#[test]
fn an_unknown_architecture_is_refused_with_those_that_are_known() {
    let known = "known are `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM`, \
        `Gemma2ForCausalLM`, `Gemma3ForCausalLM`, `Phi3ForCausalLM`, `Olmo2ForCausalLM`, `SmolLM3ForCausalLM`, \
        `GraniteForCausalLM`, `MixtralForCausalLM`, `Qwen3MoeForCausalLM`";
    assert_eq!(
        refusal(&json!({ "architectures": ["GPT2LMHeadModel"] })),
        format!("unknown architecture `GPT2LMHeadModel`; {known}")
    );
    assert_eq!(
        refusal(&json!({ "architectures": [], "model_type": "gpt2" })),
        format!("unknown architecture `gpt2`; {known}")
    );
    assert_eq!(
        refusal(&json!({ "architectures": null, "model_type": null })),
        "the configuration has no `architectures`"
    );
    assert!(ModelConfig::from_hf(&json!([1, 2])).is_err());
}

#[test]
fn both_styles_of_rotary_parameters_mean_the_same() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let four = read(&json!({ "rope_theta": 500_000.0, "rope_scaling": scaling }));
    let mut parameters = scaling;
    parameters["rope_theta"] = json!(500_000.0);
    let five = read(&json!({ "rope_parameters": parameters, "dtype": "bfloat16" }));
    assert_eq!(four, five);
    assert!(matches!(four.rope_scaling, Some(RopeScaling::Llama3(_))));
    assert_eq!(read(&json!({ "rope_scaling": null })).rope_scaling, None);
    assert_eq!(
        read(&json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0 } })),
        read(&json!({}))
    );
    assert_eq!(
        read(&json!({ "rope_scaling": { "type": "linear", "factor": 2 } })).rope_scaling,
        Some(RopeScaling::Linear(2.0))
    );
}

#[test]
fn options_that_are_not_computed_are_refused_with_those_that_are() {
    let yarn = refusal(&json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } }));
    assert_eq!(
        yarn,
        "`rope_type` is `yarn`, which is not supported; known are `default`, `linear`, `llama3`, `longrope`"
    );
    let dynamic = refusal(&json!({ "rope_scaling": { "type": "dynamic", "factor": 4.0 } }));
    assert_eq!(
        dynamic,
        "`type` is `dynamic`, which is not supported; known are `default`, `linear`, `llama3`, `longrope`"
    );
    let gelu = refusal(&json!({ "hidden_act": "gelu" }));
    assert_eq!(gelu, "`hidden_act` is `gelu`, which is not supported; known are `silu`, `swish`");
    for partial in [
        json!({ "partial_rotary_factor": 0.5 }),
        json!({ "rope_parameters": { "partial_rotary_factor": 0.5 } }),
    ] {
        assert_eq!(refusal(&partial), "`partial_rotary_factor` is 0.5, which is not supported; known are 1");
    }
    let layered = refusal(&json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }));
    assert!(layered.starts_with("`rope_parameters` is one set for each type of layer"), "{layered}");
    let chunked = json!({
        "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": true, "sliding_window": 4,
        "layer_types": ["chunked_attention", "full_attention", "full_attention", "full_attention", "full_attention"],
    });
    assert!(refusal(&chunked).starts_with("`layer_types` is \"chunked_attention\", which is not supported"));
}

#[test]
fn keys_that_are_missing_or_make_no_sense_are_refused() {
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
    {
        assert_eq!(refusal(&json!({ key: null })), format!("the configuration has no `{key}`"));
        assert_eq!(
            refusal(&json!({ key: "many" })),
            format!("`{key}` is \"many\", where a whole number is needed")
        );
        assert!(refusal(&json!({ key: -1 })).starts_with(&format!("`{key}` is -1")));
        assert!(refusal(&json!({ key: 0 })).contains("is 0, where"), "{key}");
        assert!(refusal(&json!({ key: u64::MAX })).contains("18446744073709551615"), "{key}");
    }
    let cases = [
        (
            json!({ "num_key_value_heads": 3 }),
            "`num_key_value_heads` is 3, where a divisor of num_attention_heads 8 is needed",
        ),
        (
            json!({ "num_attention_heads": 7 }),
            "`num_attention_heads` is 7, where a divisor of hidden_size 64 is needed",
        ),
        (json!({ "head_dim": 7 }), "`head_dim` is 7, where an even number is needed"),
        (json!({ "rope_theta": 0 }), "`rope_theta` is 0, where a positive number is needed"),
        (json!({ "rms_norm_eps": -1 }), "`rms_norm_eps` is -1, where a small positive number is needed"),
        (json!({ "attention_bias": "yes" }), "`attention_bias` is \"yes\", where true or false is needed"),
        (
            json!({ "eos_token_id": [1, "a"] }),
            "`eos_token_id` is [1,\"a\"], where a token or a list of tokens is needed",
        ),
        (json!({ "rope_scaling": { "type": "linear" } }), "the configuration has no `factor`"),
        (
            json!({ "architectures": ["MistralForCausalLM"], "sliding_window": 0 }),
            "`sliding_window` is 0, where a positive number or null is needed",
        ),
        (
            json!({ "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true, "sliding_window": 4, "layer_types": [] }),
            "`layer_types` is a list of 0, where one entry for each of 5 layers is needed",
        ),
    ];
    for (changes, expected) in cases {
        assert_eq!(refusal(&changes), expected);
    }
}

#[test]
fn a_window_slides_where_the_family_says() {
    let slides = |changes: &Value| read(changes).sliding_windows;
    assert_eq!(slides(&json!({ "sliding_window": 7 })), [None; 5]);
    assert_eq!(slides(&json!({ "architectures": ["MistralForCausalLM"] })), [Some(4096); 5]);
    assert_eq!(
        slides(&json!({ "architectures": ["MistralForCausalLM"], "sliding_window": null })),
        [None; 5]
    );
    let qwen = json!({ "architectures": ["Qwen2ForCausalLM"], "sliding_window": 7, "max_window_layers": 3 });
    assert_eq!(slides(&qwen), [None; 5]);
    let mut on = qwen;
    on["use_sliding_window"] = json!(true);
    assert_eq!(slides(&on), [None, None, None, Some(7), Some(7)]);
    let gemma = |changes: Value| {
        let mut all = json!({ "architectures": ["Gemma3ForCausalLM"], "sliding_window_pattern": 3 });
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        slides(&all)
    };
    let (near, all) = (Some(4096), None);
    assert_eq!(gemma(json!({})), [near, near, all, near, near]);
    assert_eq!(gemma(json!({ "sliding_window": null })), [None; 5]);
    assert_eq!(slides(&json!({ "architectures": ["Phi3ForCausalLM"] })), [None; 5]);
    let smol = json!({
        "architectures": ["SmolLM3ForCausalLM"], "use_sliding_window": true, "sliding_window": 7,
        "no_rope_layer_interval": 2,
    });
    assert_eq!(slides(&smol), [None, Some(7), None, Some(7), None]);
    assert_eq!(read(&smol).rope_layers, [true, false, true, false, true]);
}

#[test]
fn a_key_that_is_missing_has_the_familys_default_and_one_that_is_null_says_none() {
    let gemma = |changes: Value| {
        let mut all = json!({ "architectures": ["Gemma2ForCausalLM"] });
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        read(&all)
    };
    let (plain, bare) = (gemma(json!({})), gemma(json!({ "attn_logit_softcapping": null })));
    assert_eq!((plain.attention_cap, plain.logit_cap), (Some(50.0), Some(30.0)));
    assert_eq!((bare.attention_cap, bare.logit_cap), (None, Some(30.0)));
    assert!(plain.tie_word_embeddings && !read(&json!({})).tie_word_embeddings);
    assert_eq!((plain.head_dim, plain.attention_scale), (256, AttentionScale::InverseRoot(256)));
    assert_eq!(plain.embedding_multiplier.to_bits(), 8.0f32.to_bits());
}

#[test]
fn factors_for_long_texts_are_known_by_all_their_names() {
    let phi = |kind: &str| {
        let factors = vec![1.5; 4];
        let scaling = json!({ "type": kind, "short_factor": factors, "long_factor": factors });
        read(&json!({
            "architectures": ["Phi3ForCausalLM"], "max_position_embeddings": 131_072,
            "original_max_position_embeddings": 4096, "rope_scaling": scaling,
        }))
    };
    let Some(RopeScaling::LongRope(long)) = phi("longrope").rope_scaling else { panic!("no factors") };
    assert_eq!(long.original_max_position_embeddings, 4096);
    assert!((long.attention_factor - 1.190_238).abs() < 1e-6);
    assert_eq!(phi("su"), phi("longrope"));
    assert_eq!(phi("yarn"), phi("longrope"));
}

#[test]
fn experts_are_in_the_layers_the_family_says() {
    let layers = |changes: &Value| read(changes).experts.map(|experts| experts.layers);
    assert_eq!(layers(&json!({})), None);
    assert_eq!(
        layers(&json!({ "architectures": ["MixtralForCausalLM"], "mlp_only_layers": [0] })),
        Some(vec![true; 5])
    );
    let mut qwen = json!({ "architectures": ["Qwen3MoeForCausalLM"] });
    assert_eq!(layers(&qwen), Some(vec![true; 5]));
    qwen["decoder_sparse_step"] = json!(2);
    assert_eq!(layers(&qwen), Some(vec![false, true, false, true, false]));
    qwen["mlp_only_layers"] = json!([1, 4]);
    assert_eq!(layers(&qwen), Some(vec![false, false, false, true, false]));
    qwen["decoder_sparse_step"] = json!(0);
    assert_eq!(refusal(&qwen), "`decoder_sparse_step` is 0, where a positive number is needed");
}

#[test]
fn the_number_of_experts_goes_by_two_names() {
    let qwen = |key: &str| {
        read(&json!({ "architectures": ["Qwen3MoeForCausalLM"], "num_local_experts": null, key: 16 })).experts
    };
    assert_eq!(qwen("num_experts"), qwen("num_local_experts"));
    assert_eq!(qwen("num_experts").map(|experts| experts.num_experts), Some(16));
    let none = refusal(&json!({ "architectures": ["Qwen3MoeForCausalLM"], "num_local_experts": null }));
    assert_eq!(none, "the configuration has no `num_experts`");
    let few = refusal(&json!({ "architectures": ["MixtralForCausalLM"], "num_experts_per_tok": 9 }));
    assert_eq!(few, "`num_experts_per_tok` is 9, where a number from 1 to 8 is needed");
}

#[test]
fn mixtral_turns_a_hundred_times_slower_than_others_where_nothing_is_said() {
    let theta = |architecture: &str| read(&json!({ "architectures": [architecture] })).rope_theta.to_bits();
    assert_eq!(theta("MixtralForCausalLM"), 1e6_f64.to_bits());
    assert_eq!(theta("Qwen3MoeForCausalLM"), 1e4_f64.to_bits());
}

#[test]
fn ends_of_text_are_one_token_or_many() {
    assert_eq!(read(&json!({ "eos_token_id": 2, "bos_token_id": 1 })).eos_token_ids, [2]);
    assert_eq!(read(&json!({ "eos_token_id": [2, 7], "bos_token_id": null })).eos_token_ids, [2, 7]);
    assert_eq!(read(&json!({ "bos_token_id": 1 })).bos_token_id, Some(1));
}

#[test]
fn a_configuration_written_for_transformers_reads_back_the_same() {
    let folders = std::fs::read_dir(crate::checkpoint::golden()).unwrap().map(|entry| entry.unwrap().path());
    let configs: Vec<_> = folders.filter(|folder| folder.join("config.json").exists()).collect();
    assert!(configs.len() > 5, "{configs:?}");
    for folder in configs {
        let config = crate::checkpoint::config(&folder);
        assert_eq!(ModelConfig::from_hf(&config.to_hf().unwrap()).unwrap(), config, "{}", folder.display());
    }
}
