//! Text on its way into HTML and SVG.

use maud::Render;

/// Text from a report, harmless wherever it is put: markup is escaped, and what no document may hold is replaced.
pub(super) struct Text<'a>(pub(super) &'a str);

impl Render for Text<'_> {
    fn render_to(&self, buffer: &mut String) {
        // XML knows no such characters, not even escaped.
        let outlawed = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
        let clean: String =
            self.0.chars().map(|c| if outlawed(c) { char::REPLACEMENT_CHARACTER } else { c }).collect();
        clean.render_to(buffer);
    }
}

#[cfg(test)]
mod tests {
    use maud::html;

    use super::*;

    #[test]
    fn text_cannot_become_markup_or_break_a_document() {
        let hostile = "<script>\"&'\u{0}\u{1b}\u{ffff}\n";
        let text = html! { p title=(Text(hostile)) { (Text(hostile)) } }.into_string();
        let harmless = "&lt;script&gt;&quot;&amp;'\u{fffd}\u{fffd}\u{fffd}\u{fffd}";
        assert_eq!(text, format!("<p title=\"{harmless}\">{harmless}</p>"));
    }
}
