//! The frame of a page: title, contents, sections.

use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Browsers load nothing but what is in the page, whatever it says.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// A whole page.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The heading.
    pub title: String,
    /// Small line above the heading.
    pub kind: String,
    /// One sentence below the heading.
    pub lead: Markup,
    /// In reading order.
    pub sections: Vec<Section>,
    /// Last line.
    pub footer: String,
}

/// A part of the page with a heading; it is listed in the contents.
#[derive(Debug, Clone)]
pub struct Section {
    /// Target of the link in the contents; unique, letters only.
    pub id: &'static str,
    /// The heading.
    pub title: String,
    /// What it holds.
    pub body: Markup,
}

impl Page {
    /// The document.
    pub fn render(&self) -> String {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="generator" content="datum";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        p.kind { (self.kind) }
                        h1 { (self.title) }
                        p.lead { (self.lead) }
                        nav aria-label="Contents" {
                            @for section in &self.sections { a href={ "#" (section.id) } { (section.title) } " " }
                        }
                    }
                    main {
                        @for section in &self.sections {
                            section id=(section.id) { h2 { (section.title) } (section.body) }
                        }
                    }
                    footer { p { (self.footer) } }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        }
        .into_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_escaped() {
        let nasty = "<script>alert(1)</script> & \"quotes\"".to_string();
        let section = Section { id: "a", title: nasty.clone(), body: html! { p title=(nasty) { (nasty) } } };
        let page = Page { title: nasty.clone(), kind: nasty.clone(), sections: vec![section], ..Page::default() };
        let text = page.render();
        assert_eq!(text.matches("<script>").count(), 1, "the page's own");
        assert!(text.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quotes&quot;"));
    }

    #[test]
    fn style_and_script_end_where_they_should_and_load_nothing() {
        assert!(!STYLE.contains("</") && !SCRIPT.contains("</"));
        for word in ["http", "@import", "url(", "src=", "fetch(", "XMLHttpRequest"] {
            assert!(!STYLE.contains(word) && !SCRIPT.contains(word), "{word}");
        }
    }
}
