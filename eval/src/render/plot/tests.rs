use super::super::Subject;
use crate::report::{Allocated, Allocation, Histogram, Report, SizePoint, example};
use crate::{Divergence, Perplexity};

/// Every drawing, read as XML: as a file and as it stands in the page.
fn well_formed(subject: Subject<'_>) -> Vec<String> {
    let renderer = crate::render::renderer("html").expect("pages are rendered");
    let page = subject.text(renderer);
    let inline = page.split("<svg").skip(1).filter_map(|part| part.split_once("</svg>"));
    for (drawing, _) in inline {
        let drawing = format!("<svg{drawing}</svg>");
        assert!(roxmltree::Document::parse(&drawing).is_ok(), "{drawing}");
    }
    let plots = subject.plots();
    for plot in &plots {
        let svg = plot.svg();
        let document = roxmltree::Document::parse(&svg);
        let document = document.unwrap_or_else(|error| panic!("{}: {error}\n{svg}", plot.name()));
        let titled = document
            .root_element()
            .children()
            .any(|child| child.has_tag_name(("http://www.w3.org/2000/svg", "title")));
        assert!(titled && document.root_element().attribute("role") == Some("img"));
        for number in ["NaN", "inf", "Infinity"] {
            assert!(!svg.contains(&format!("\"{number}")) && !svg.contains(&format!(",{number}")), "{svg}");
        }
    }
    let names: Vec<String> = plots.iter().map(|plot| plot.name().to_owned()).collect();
    let distinct: std::collections::HashSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "{names:?}");
    assert!(names.iter().all(|name| super::is_drawing(name, "").is_some()), "{names:?}");
    names
}

#[test]
fn every_figure_is_a_file_of_its_own() {
    let names = well_formed(Subject::Report(&example::detailed()));
    assert_eq!(
        names,
        [
            "kl-histogram",
            "breakdown",
            "kl-histogram-2",
            "breakdown-2",
            "tensor-errors",
            "tensor-error-map",
            "stages"
        ]
    );
    let names = well_formed(Subject::Report(&example::distilled()));
    assert_eq!(names, ["distillation-loss", "distillation-perplexity"]);
    let names = well_formed(Subject::Comparison(&example::compared()));
    assert_eq!(names, ["pareto-kl", "pareto-perplexity"]);
}

/// Of a file of a given size, whatever the sizes and costs that stand there.
#[test]
fn what_other_sizes_would_have_cost_is_drawn() {
    for (odd, drawn) in [(0.001, true), (f64::NAN, true), (0.0, true), (1e308, true)] {
        let mut report = example::quantized();
        let point = |bytes, predicted_kl| SizePoint { bytes, bits_per_weight: 4.0, predicted_kl };
        report.allocation = Some(Allocation {
            target_bytes: Some(5_000_000),
            target_bits_per_weight: None,
            allowed: vec!["q4_k".to_owned()],
            chosen: point(4_800_000, 0.008),
            tensors: vec![Allocated {
                name: "output.weight".to_owned(),
                encoding: "q6_k".to_owned(),
                predicted_kl: odd,
            }],
            curve: vec![point(4_000_000, 0.02), point(u64::MAX, odd), point(6_000_000, odd)],
        });
        let names = well_formed(Subject::Report(&report));
        assert_eq!(names.iter().any(|name| name == "kl-by-size"), drawn, "{odd}: {names:?}");
        let text = Subject::Report(&report).text(crate::render::renderer("terminal").expect("it is there"));
        assert!(text.contains("expected KL") && text.contains("chosen"), "{text}");
    }
}

#[test]
fn a_report_with_nothing_to_draw_has_no_drawing() {
    assert!(well_formed(Subject::Report(&Report::new(example::model()))).is_empty());
    assert!(well_formed(Subject::Comparison(&[])).is_empty());
}

/// Reports made by others, or by nobody.
#[test]
fn odd_figures_are_not_drawn_or_at_the_edge() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1.0, 1e-320, 1e308] {
        let mut report = example::detailed();
        let evaluation = report.evaluation.as_mut().expect("the example is evaluated");
        evaluation.perplexity = Perplexity { value: odd, stderr: odd };
        evaluation.reference_perplexity = Some(Perplexity { value: odd, stderr: odd });
        let [mean, stderr, median, p90, p99, p99_9, max] = [odd; 7];
        evaluation.kl_divergence = Some(Divergence { mean, stderr, median, p90, p99, p99_9, max });
        let breakdown = evaluation.breakdown.as_mut().expect("the example is taken apart");
        breakdown.kind[0].kl_divergence.as_mut().expect("it has a reference").mean = odd;
        breakdown.kind[1].kl_divergence.as_mut().expect("it has a reference").stderr = odd;
        report.tensors[0].relative_error = Some(odd);
        report.tensors[1].rtn_relative_error = Some(odd);
        let run = report.run.as_mut().expect("the example was run");
        run.stages[0].seconds = odd;
        run.seconds = odd;
        well_formed(Subject::Report(&report));
        let mut several = example::compared();
        several.push(report);
        for report in &mut several {
            report.evaluation.as_mut().expect("each was evaluated").breakdown = None;
        }
        well_formed(Subject::Comparison(&several));
        let mut taught = example::distilled();
        let curve = &mut taught.distillation.as_mut().expect("it was taught").curve;
        curve[2].held_out_loss = Some(odd);
        curve[3].held_out_perplexity = Some(odd);
        well_formed(Subject::Report(&taught));
    }
}

#[test]
fn histograms_that_are_none_are_not_drawn() {
    let histograms: [(&[f64], &[u64]); 8] = [
        (&[], &[]),
        (&[0.0], &[5]),
        (&[0.0, 0.1], &[5, 5]),
        (&[0.0, 0.1, 1.0], &[0, 0, 0]),
        (&[0.0, 0.1, 1.0], &[1, 2]),
        (&[0.0, 1.0, 0.1], &[1, 2, 3]),
        (&[0.0, -1.0, 0.1], &[1, 2, 3]),
        (&[0.0, 0.1, f64::INFINITY], &[1, 2, 3]),
    ];
    for (from, tokens) in histograms {
        let mut report = example::detailed();
        let histogram = Histogram { from: from.to_vec(), tokens: tokens.to_vec() };
        report.evaluation.as_mut().expect("the example is evaluated").kl_histogram = Some(histogram);
        assert!(!well_formed(Subject::Report(&report)).contains(&"kl-histogram-2".to_owned()));
    }
    // All in one bin, open at its end.
    let mut report = example::detailed();
    let histogram = Histogram { from: vec![0.0, 0.1, 1.0], tokens: vec![0, 0, 7] };
    report.evaluation.as_mut().expect("the example is evaluated").kl_histogram = Some(histogram);
    assert!(well_formed(Subject::Report(&report)).contains(&"kl-histogram-2".to_owned()));
}

#[test]
fn models_of_one_layer_and_of_eighty_are_drawn() {
    for (layers, panels) in [(1, 7), (80, 7)] {
        let report = Report { tensors: example::deep(layers), ..example::quantized() };
        well_formed(Subject::Report(&report));
        let plots = Subject::Report(&report).plots();
        assert_eq!(plots[0].panels.len(), panels);
        let svg = plots[1].svg();
        assert_eq!(svg.matches("<title>layer ").count(), 7 * layers);
        assert!(svg.len() < 200_000, "{} bytes", svg.len());
    }
}

/// Experts of a layer are one cell: their mean.
#[test]
fn experts_count_as_one() {
    let mut tensors = example::deep(2);
    for (expert, mut tensor) in example::deep(2).into_iter().enumerate().take(1) {
        tensor.expert = Some(expert as u64);
        tensor.relative_error = tensor.relative_error.map(|error| 3.0 * error);
        tensors.push(tensor);
    }
    let report = Report { tensors, ..example::quantized() };
    let svg = Subject::Report(&report).plots()[1].svg();
    assert!(svg.contains("layer 0, q_proj: 0.00200 (q4_k, mean of 2)"), "{svg}");
}
