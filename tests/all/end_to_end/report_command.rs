//! `attar report`: reports that were written, shown again and held against one another.

use std::fs;

use super::QUICK;
use crate::place::Place;

/// Two schemes of the fixture, `a.json` and `b.json`.
fn two_reports() -> Place {
    let place = Place::new();
    for (name, scheme) in [("a", "q4_0"), ("b", "q8_0")] {
        let line = format!("quantize books-2m -o {name}.gguf --scheme {scheme} --method rtn {QUICK}");
        place.done(&format!("{line} --quiet --report {name} --json {name}.json"));
    }
    place
}

#[test]
fn a_report_is_shown_again_as_it_was_written() {
    let place = two_reports();
    let read = |name: &str| fs::read_to_string(place.at(name)).unwrap();
    for (format, extension) in [("terminal", "txt"), ("markdown", "md"), ("html", "html"), ("json", "json")] {
        let shown = place.done(&format!("report a.json --format {format}"));
        assert_eq!(shown, read(&format!("a/report.{extension}")), "{format}");
    }
    assert!(!place.at("a/report.xml").exists(), "nothing was held to a limit");
    place.refuses("report a.json --format junit", &["nothing to show as `junit`", "attar check"]);
    place.done("report a.json --report again --json again.json");
    place.done("report a.json --report again --json again.json"); // in the place of its own
    assert_eq!(read("again.json"), read("a.json"));
    for file in ["report.html", "plots/tensor-errors.svg", "plots/tensor-error-map.svg", "plots/stages.svg"] {
        assert_eq!(read(&format!("again/{file}")), read(&format!("a/{file}")), "{file}");
    }
}

#[test]
fn of_two_reports_what_changed_is_told() {
    let place = two_reports();
    let told = place.done("report a.json b.json --json difference.json --report difference");
    for part in ["Difference", "a.gguf", "b.gguf", "bits per weight", "perplexity", "q4_0", "q8_0", "scheme"]
    {
        assert!(told.contains(part), "no {part} in\n{told}");
    }
    let difference = place.json("difference.json");
    assert_eq!(difference["schema"], "attar-report-difference/1");
    let kl = |side: &str| difference["evaluations"][0]["kl_divergence"][side]["mean"].as_f64().unwrap();
    assert!(kl("before") > 10.0 * kl("after"), "{difference:#}");
    assert!(place.at("difference/report.html").is_file() && !place.at("difference/plots").exists());
    // A difference takes the place of a difference, and is no report.
    place.done("report a.json b.json --json difference.json");
    place.refuses("report difference.json", &["no report"]);
}

#[test]
fn of_more_reports_a_table_is_made_with_its_plots() {
    let place = two_reports();
    let table = place.done("report a.json b.json a.json --report all");
    assert!(table.starts_with("Comparison\n") && table.contains("q8_0"), "{table}");
    assert!(fs::read_to_string(place.at("all/plots/pareto-kl.svg")).unwrap().contains("b.gguf"));
    // The list it wrote is a table again.
    assert_eq!(place.done("report all/report.json"), table);
}

#[test]
fn the_schema_is_printed_as_it_is_published() {
    let place = Place::new();
    let schema: serde_json::Value = serde_json::from_str(&place.done("report --schema")).unwrap();
    assert_eq!(schema["title"], "attar-report/1");
    assert_eq!(schema["required"], serde_json::json!(["schema", "model"]));
}
