#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use serde_json::Value;

use super::*;

#[test]
fn a_report_survives_json() {
    let report = example::quantized();
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(Report::from_json(&json).unwrap(), report);
}

#[test]
fn what_a_reference_was_kept_in_survives_json() {
    let report = example::against_a_cache();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["evaluation"]["reference"]["kl_buckets"], 65);
    assert_eq!(Report::from_json(&json.to_string()).unwrap(), report);
}

#[test]
fn a_report_about_a_model_alone_has_no_other_parts() {
    let report = Report::new(example::model());
    let json = serde_json::to_value(&report).unwrap();
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["schema", "model"]);
    assert_eq!(Report::from_json(&json.to_string()).unwrap(), report);
}

#[test]
fn an_unknown_schema_is_refused_by_name() {
    let json = serde_json::to_string(&example::quantized()).unwrap();
    let error = Report::from_json(&json.replace(SCHEMA, "attar-report/2")).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("the schema is `attar-report/2`, only `attar-report/1` is known"));
}

#[test]
fn a_report_without_a_schema_is_refused() {
    assert!(Report::from_json(r#"{"model":{}}"#).is_err());
    assert!(Report::from_json("[]").is_err());
    assert!(Report::from_json("").is_err());
}

#[test]
fn a_key_of_a_later_writer_is_passed_over() {
    let mut json = serde_json::to_value(example::quantized()).unwrap();
    json["evaluation"]["moods"] = serde_json::json!([]);
    assert_eq!(Report::from_json(&json.to_string()).unwrap(), example::quantized());
}
/// Where the schema is published, beside the sources.
fn published() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/attar-report-1.schema.json")
}

/// After a change: `ATTAR_UPDATE_SCHEMA=1 cargo test the_published_schema`.
#[test]
fn the_published_schema_is_that_of_these_types() {
    let schema = serde_json::to_string_pretty(&Report::json_schema()).unwrap() + "\n";
    if std::env::var_os("ATTAR_UPDATE_SCHEMA").is_some() {
        std::fs::write(published(), &schema).unwrap();
    }
    let found = std::fs::read_to_string(published()).unwrap();
    assert!(found == schema, "{} is not current: ATTAR_UPDATE_SCHEMA=1 renews it", published().display());
}

/// As far as the schema of these types goes, what is wrong with `value`; a whole validator would be thirty crates.
fn faults(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        return faults(root, root.pointer(&target[1..]).unwrap(), value, at);
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(choices) = schema.get(choice).and_then(Value::as_array) {
            let fits = choices.iter().any(|choice| faults(root, choice, value, at).is_empty());
            return if fits { Vec::new() } else { vec![format!("{at}: none of {choice}")] };
        }
    }
    let types =
        schema.get("type").map(|types| types.as_array().cloned().unwrap_or_else(|| vec![types.clone()]));
    let is = |name: &Value| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("{at}: the type {other} is new here"),
    };
    if types.is_some_and(|types| !types.iter().any(is)) {
        return vec![format!("{at}: not of type {}", schema["type"])];
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return vec![format!("{at}: not {}", schema["const"])];
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let missing = required.filter(|key| value.get(key.as_str().unwrap()).is_none());
    let mut found: Vec<String> = missing.map(|key| format!("{at}: no {key}")).collect();
    for (key, part) in value.as_object().into_iter().flatten() {
        match schema.pointer(&format!("/properties/{key}")) {
            Some(schema) => found.extend(faults(root, schema, part, &format!("{at}/{key}"))),
            None => found.push(format!("{at}/{key}: not described")),
        }
    }
    for (index, part) in value.as_array().into_iter().flatten().enumerate() {
        found.extend(faults(root, &schema["items"], part, &format!("{at}/{index}")));
    }
    found
}

#[test]
fn every_report_keeps_to_the_schema_and_every_key_is_described() {
    let schema = serde_json::to_value(Report::json_schema()).unwrap();
    let mut reports = vec![
        example::quantized(),
        example::detailed(),
        example::against_a_cache(),
        example::pruned(),
        example::distilled(),
        Report::new(example::model()),
    ];
    reports.extend(example::chained());
    for report in reports {
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(faults(&schema, &schema, &value, ""), [""; 0]);
    }
}

#[test]
fn the_schema_refuses_what_is_no_report() {
    let schema = serde_json::to_value(Report::json_schema()).unwrap();
    let mut value = serde_json::to_value(example::quantized()).unwrap();
    value["schema"] = "attar-report/2".into();
    value["model"]["bytes"] = "many".into();
    value["evaluation"].as_object_mut().unwrap().remove("tokens");
    let faults = faults(&schema, &schema, &value, "");
    assert_eq!(faults.len(), 3, "{faults:?}");
}

/// A key that a reader may miss must not be required of a writer.
#[test]
fn what_has_a_default_is_not_required() {
    let schema = serde_json::to_value(Report::json_schema()).unwrap();
    assert_eq!(schema["required"], serde_json::json!(["schema", "model"]));
    let text = schema.pointer("/$defs/Tensor/description").and_then(Value::as_str).unwrap();
    assert_eq!(text, "What became of one weight tensor.");
}

#[test]
fn files_hold_one_report_or_several_and_say_what_they_hold_otherwise() {
    let one = serde_json::to_string(&example::quantized()).unwrap();
    assert_eq!(read(&one).unwrap(), [example::quantized()]);
    assert_eq!(read(&format!("[{one},{one}]")).unwrap().len(), 2);
    let newer = one.replace(SCHEMA, "attar-report/2");
    let cases = [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "a list of no reports"),
        ("{}", "no report: it has no key `schema`"),
        ("7", "no report: it has no key `schema`"),
        (r#"{"schema":"else"}"#, "no report: its `schema` is none of attar's reports"),
        (r#"{"schema":"attar-report/1"}"#, "not a report of schema `attar-report/1`"),
        (
            &newer,
            "a report of a newer attar: its schema is `attar-report/2`, and this version reads `attar-report/1` only",
        ),
    ];
    for (json, message) in cases {
        assert_eq!(read(json).unwrap_err().to_string(), message, "{json}");
    }
    assert!(read(&newer).unwrap_err().hint().contains("update attar"));
}

#[test]
fn the_layer_of_a_tensor_is_in_its_name() {
    let cases = [
        ("model.layers.12.self_attn.q_proj.weight", Some(12)),
        ("model.language_model.layers.3.mlp.experts.7.up_proj.weight", Some(3)),
        ("model.embed_tokens.weight", None),
        ("layers", None),
        ("model.layers.x.weight", None),
    ];
    let mut tensor = example::quantized().tensors.remove(0);
    for (name, layer) in cases {
        name.clone_into(&mut tensor.name);
        assert_eq!(tensor.layer(), layer, "{name}");
    }
}
