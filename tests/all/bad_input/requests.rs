//! Words that ask for what cannot be.

use crate::place::Place;

#[test]
fn an_unknown_scheme() {
    let place = Place::new();
    for scheme in ["q4_k_xl", "w9a16-g64", "w4a16-g0"] {
        let line = format!("quantize books-2m -o out.gguf --scheme {scheme}");
        place.refuses(&line, &[scheme, "q4_k_m", "w4a16-g128"]);
    }
}

#[test]
fn a_group_size_that_divides_no_row() {
    let place = Place::new();
    let line = "quantize books-2m -o out --scheme w4a16-g96";
    place.refuses(line, &["model.layers.0.self_attn.q_proj.weight", "groups of 96", "rows of 256", "128"]);
}

#[test]
fn integers_asked_of_a_gguf_file() {
    let place = Place::new();
    place.refuses("quantize books-2m -o out.gguf --scheme w4a16-g64", &["GGUF", "w4a16-g64", "folder"]);
}

#[test]
fn a_gguf_type_asked_of_a_folder() {
    let place = Place::new();
    place.refuses("quantize books-2m -o out --scheme q4_k_m", &["safetensors", "q4_k_m", ".gguf"]);
}

#[test]
fn a_layout_that_does_not_go_with_the_scheme() {
    let place = Place::new();
    for (output, scheme, layout) in [
        ("out", "w4a16-g64", "plain"),
        ("out", "bf16", "compressed-tensors"),
        ("out.gguf", "q4_k_m", "plain"),
        ("out.gguf", "f16", "plain"),
    ] {
        let line = format!("quantize books-2m -o {output} --scheme {scheme} --format {layout}");
        place.refuses(&line, &[layout, scheme]);
    }
}

#[test]
fn too_little_text_to_tune_by() {
    let place = Place::new();
    let line = "quantize books-2m -o out.gguf --scheme q4_0 --tune-tokens 4096";
    place.refuses(
        &format!("{line} --calib-tokens 1024 --ctx 128"),
        &["8 windows", "16 windows", "--tune-tokens"],
    );
    place.refuses(&format!("{line} --method rtn"), &["0 windows", "--tune-tokens"]);
}

#[test]
fn tuning_that_does_not_fit_into_memory() {
    let place = Place::new();
    place.refuses(
        "quantize books-2m -o out.gguf --scheme q4_0 --tune-tokens 4096 --calib-tokens 4096 --ctx 128 --max-memory 125MB",
        &["tuning this model needs about", "125.00 MB", "--tune-tokens"],
    );
}

#[test]
fn zeros_that_cannot_be() {
    let place = Place::new();
    for (line, words) in [
        (
            "quantize books-2m -o out.gguf --scheme q4_k_m --sparsity 2:4",
            &["q4_k", "zeros", "w4a16-g128"][..],
        ),
        ("prune books-2m -o out --sparsity 2:3", &["2:3", "2:4"]),
        ("prune books-2m -o out --sparsity 1.5", &["1.5", "0.5"]),
        ("prune books-2m -o out --sparsity 2:4 --layers 1", &["one after the other", "--sparsity"]),
    ] {
        place.refuses(line, words);
    }
}

#[test]
fn a_tensor_rule_that_matches_nothing() {
    let place = Place::new();
    let line = "quantize books-2m -o out.gguf --scheme q4_k_m --tensor experts=q6_k";
    place.refuses(line, &["experts", "attar inspect -v"]);
}

#[test]
fn a_tensor_rule_with_an_unknown_type() {
    let place = Place::new();
    let line = "quantize books-2m -o out.gguf --scheme q4_k_m --tensor down_proj=q9_k";
    place.refuses(line, &["q9_k", "down_proj", "q6_k"]);
    let line = "quantize books-2m -o out --scheme w4a16-g64 --tensor down_proj=q6_k";
    place.refuses(line, &["q6_k", "down_proj", "float"]);
}

#[test]
fn a_tensor_rule_that_is_none() {
    let place = Place::new();
    for rule in ["down_proj", "(=q6_k"] {
        place.refuses(&format!("quantize books-2m -o out.gguf --scheme q4_k_m --tensor {rule}"), &[rule]);
    }
}

#[test]
fn less_memory_than_the_work_takes() {
    let place = Place::new();
    let line = "quantize books-2m -o out.gguf --scheme q4_k_m --no-eval --max-memory 1MB";
    place.refuses(line, &["--max-memory is 1.00 MB", "--method rtn"]);
    let line = "quantize books-2m -o out.gguf --scheme q4_k_m --method rtn --max-memory 1MB";
    place.refuses(line, &["--max-memory is 1.00 MB"]);
    let line = "eval books-2m --text heldout.txt --max-memory 1MB";
    place.refuses(line, &["--max-memory is 1.00 MB", "--ctx"]);
}

#[test]
fn numbers_that_are_none() {
    let place = Place::new();
    for flags in ["--max-memory lots", "--threads 0", "--chunks many"] {
        let line = format!("quantize books-2m -o out.gguf --scheme q4_k_m {flags}");
        let run = place.run(&line);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{line}");
        assert!(run.stderr.contains(flags.split(' ').next().unwrap()), "{}", run.stderr);
        assert!(!place.at("out.gguf").exists());
    }
}

#[test]
fn a_recipe_that_is_not_there() {
    let place = Place::new();
    place.refuses("run absent.toml", &["absent.toml", "No such file", "misprint"]);
}

#[test]
fn a_recipe_that_is_no_toml() {
    let place = Place::new();
    place.write("recipe.toml", "model = books-2m\n");
    place.refuses("run recipe.toml", &["recipe.toml", "recipe.toml:1:9", "laptop-chat.toml"]);
}

#[test]
fn a_recipe_with_an_unknown_key() {
    let place = Place::new();
    let output = "[[quantize]]\nscheme = \"q4_k_m\"\noutput = \"out.gguf\"\n";
    for (recipe, key) in [
        (format!("model = \"books-2m\"\nschema = \"q4_k_m\"\n{output}"), "schema"),
        (format!("model = \"books-2m\"\n{output}methods = \"gptq\"\n"), "methods"),
        (format!("model = \"books-2m\"\n[calibration]\nfile = \"calibration.txt\"\n{output}"), "`file`"),
    ] {
        place.write("recipe.toml", &recipe);
        place.refuses("run recipe.toml", &["recipe.toml", key]);
    }
}

#[test]
fn a_recipe_without_outputs() {
    let place = Place::new();
    for recipe in ["model = \"books-2m\"\n", "model = \"books-2m\"\nquantize = []\n"] {
        place.write("recipe.toml", recipe);
        place.refuses("run recipe.toml", &["recipe.toml", "quantize"]);
    }
}

#[test]
fn a_recipe_with_one_bad_output_among_good_ones() {
    let place = Place::new();
    let good =
        "model = \"books-2m\"\n[[quantize]]\nscheme = \"q8_0\"\noutput = \"good.gguf\"\n[[quantize]]\n";
    for (bad, parts) in [
        ("scheme = \"q9_0\"\noutput = \"bad.gguf\"\n", ["q9_0", "bad.gguf"]),
        ("scheme = \"w4a16-g96\"\noutput = \"bad\"\n", ["groups of 96", "rows of 256"]),
        ("scheme = \"w4a16-g64\"\noutput = \"bad.gguf\"\n", ["w4a16-g64", "GGUF"]),
        ("scheme = \"q4_0\"\noutput = \"bad.gguf\"\ntensor = [\"experts=q6_k\"]\n", ["experts", "matches"]),
        ("scheme = \"q4_0\"\noutput = \"heldout.txt/bad.gguf\"\n", ["heldout.txt/bad.gguf", "heldout.txt"]),
    ] {
        place.write("recipe.toml", &format!("{good}{bad}"));
        place.refuses("run recipe.toml", &parts);
    }
}

#[test]
fn a_recipe_that_makes_one_output_twice() {
    let place = Place::new();
    let output = "[[quantize]]\nscheme = \"q8_0\"\noutput = \"out.gguf\"\n";
    place.write("recipe.toml", &format!("model = \"books-2m\"\n{output}{output}"));
    place.refuses("run recipe.toml", &["out.gguf", "twice"]);
}

#[test]
fn a_device_that_is_not_there() {
    let place = Place::new();
    for device in ["cuda", "cuda:9"] {
        let command = format!("quantize books-2m -o out.gguf --scheme q4_k_m --device {device}");
        place.refuses(&command, &[device, "CUDA", "--device cpu"]);
        let command = format!("eval books-2m --text heldout.txt --device {device}");
        place.refuses(&command, &[device, "CUDA", "--device cpu"]);
    }
}

#[test]
fn a_device_of_an_unknown_name() {
    let place = Place::new();
    for device in ["gpu", "cuda:first", "CUDA"] {
        let line = format!("eval books-2m --text heldout.txt --device {device}");
        place.refuses(&line, &[device, "auto, cpu and cuda"]);
    }
}
