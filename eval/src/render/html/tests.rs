use super::*;
use crate::report::example;

/// What a reader sees, a line for each piece of text; styles and drawings left out.
fn words(html: &str) -> String {
    let body = html.split_once("<body>").map_or("", |(_, body)| body);
    let drawn = body.split("<svg").enumerate().map(|(index, part)| match index {
        0 => part,
        _ => part.split_once("</svg>").map_or("", |(_, after)| after),
    });
    let text: String = drawn.collect();
    let pieces = text.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| text.trim());
    pieces.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn a_report_with_every_part() {
    insta::assert_snapshot!(words(&Html.render(&example::detailed())));
}

#[test]
fn a_comparison() {
    insta::assert_snapshot!(words(&Html.compare(&example::compared())));
}

/// Texts of a report are escaped, so what looks like one of these is ours.
#[test]
fn the_page_needs_no_script_and_nothing_from_elsewhere() {
    for html in [Html.render(&example::detailed()), Html.compare(&example::compared())] {
        for foreign in ["<script", "<link rel=\"stylesheet", "<img", "<iframe", "@import", "url(", " on"] {
            let mut tags = html.split('<').filter_map(|part| part.split_once('>')).map(|(tag, _)| tag);
            assert!(tags.all(|tag| !format!("<{tag}").contains(foreign)), "{foreign}");
        }
        let addresses = html.matches("://").count();
        assert_eq!(addresses, 0, "a page names no address");
    }
}

#[test]
fn every_fact_of_the_other_renderings_is_on_the_page() {
    for report in [example::detailed(), example::pruned(), example::distilled(), example::against_a_cache()] {
        let html = words(&Html.render(&report));
        for section in page::of_report(&report).sections {
            let rows = section.table.filter(|_| !matches!(section.figure, Some(Figure::Worst(_))));
            let cells = rows.into_iter().flat_map(|table| table.rows.into_iter().flatten());
            for text in section.facts.into_iter().map(|(_, value)| value).chain(cells).chain(section.remarks)
            {
                assert!(html.contains(&maud::html! { (Text(&text)) }.into_string()), "{text}");
            }
        }
    }
}

#[test]
fn a_token_stands_where_it_stood() {
    let html = words(&Html.render(&example::detailed()));
    assert!(html.contains("have you heard that Netherfield\n␣Park\n"), "{html}");
    assert!(html.contains("Chapter 12.⏎ ⏎\nIt\n"), "{html}");
}
