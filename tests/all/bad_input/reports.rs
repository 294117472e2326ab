//! Files that are no reports.

use crate::place::Place;

#[test]
fn what_is_no_report_is_refused_by_name_and_reason() {
    let place = Place::new();
    let model = r#""model":{"source":"m","family":"llama","parameters":1,"bytes":2}"#;
    for (content, parts) in [
        ("", &["not JSON"][..]),
        ("GGUF\u{0}\u{0}", &["not JSON"]),
        ("[]", &["a list of no reports"]),
        ("{\"schema\":\"attar-teacher-cache/1\"}", &["none of attar's reports"]),
        (r#"{"schema":"attar-report/1"}"#, &["attar-report/1", "missing field `model`"]),
        (
            &format!(r#"{{"schema":"attar-report/2",{model}}}"#),
            &["attar-report/2", "attar-report/1", "update attar"],
        ),
        (&format!(r#"[{{"schema":"attar-report/1",{model}}},7]"#), &["no report"]),
    ] {
        place.write("bad.json", content);
        place.refuses("report bad.json", &[parts, &["bad.json"]].concat());
    }
    place.refuses("report nowhere.json", &["nowhere.json"]);
    place.write("good.json", &format!(r#"{{"schema":"attar-report/1",{model}}}"#));
    place.refuses("report good.json bad.json", &["bad.json"]);
    place.refuses("report good.json good.json --json good.json", &["take the place", "good.json"]);
    for (line, part) in [
        ("report", "REPORT.json"),
        ("report good.json --schema", "--schema"),
        ("report --schema --json schema.json", "--schema"),
        ("report good.json --format pdf", "possible values: terminal, markdown, html, json, junit"),
    ] {
        let run = place.run(line);
        assert!(run.code == Some(2) && run.stderr.contains(part), "{line}: {}", run.stderr);
    }
}

#[test]
fn only_reports_are_replaced_whatever_their_form() {
    let place = Place::new();
    let model = r#""model":{"source":"m","family":"llama","parameters":1,"bytes":2}"#;
    place.write("good.json", &format!(r#"{{"schema":"attar-report/1",{model}}}"#));
    for file in ["report.md", "report.html", "report.txt", "report.xml", "report.json", "plots/stages.svg"] {
        let folder = file.replace(['.', '/'], "-");
        std::fs::create_dir_all(place.at(&format!("{folder}/plots"))).unwrap();
        let path = format!("{folder}/{file}");
        place.write(&path, "# My own report\n");
        place.refuses(&format!("report good.json --report {folder}"), &[file, "no report of attar's"]);
        assert_eq!(std::fs::read_to_string(place.at(&path)).unwrap(), "# My own report\n");
    }
    // What no drawing is called stays, and is in nobody's way.
    std::fs::create_dir_all(place.at("mine/plots")).unwrap();
    place.write("mine/plots/holiday.svg", "<svg/>");
    place.done("report good.json --report mine");
}
