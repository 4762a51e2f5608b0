//! Pictures inside the page: sheets of small ones, and pairs to compare with a slider.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html};

/// A JPEG picture.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The file's bytes.
    pub jpeg: Vec<u8>,
    /// (height, width) in pixels.
    pub size: (usize, usize),
    /// What it shows, for those who do not see it.
    pub alt: String,
}

/// A picture with words below it.
#[derive(Debug, Clone)]
pub struct Captioned {
    /// The picture.
    pub picture: Picture,
    /// First line.
    pub title: String,
    /// Second, smaller line.
    pub note: String,
}

/// Pictures of one scene, to lay over each other.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What they have in common.
    pub title: String,
    /// Two or more, each with its name.
    pub layers: Vec<(String, Picture)>,
    /// The layers that are on the left and on the right at first.
    pub first: (usize, usize),
}

/// The picture itself, inside the page.
pub fn picture(picture: &Picture) -> Markup {
    let source = format!("data:image/jpeg;base64,{}", STANDARD.encode(&picture.jpeg));
    html! { img src=(source) width=(picture.size.1) height=(picture.size.0) alt=(picture.alt) decoding="async"; }
}

/// A grid of pictures with captions.
pub fn sheet(pictures: &[Captioned]) -> Markup {
    html! {
        div.sheet {
            @for Captioned { picture: shown, title, note } in pictures {
                figure {
                    (picture(shown))
                    figcaption { (title) @if !note.is_empty() { small { (note) } } }
                }
            }
        }
    }
}

/// Scenes to compare. The script lays two layers over each other with a slider between them; without it, and on paper, all
/// layers stand side by side.
pub fn comparisons(scenes: &[Comparison]) -> Markup {
    html! {
        div.scenes {
            @for scene in scenes {
                section.scene data-left=(scene.first.0) data-right=(scene.first.1) aria-label=(scene.title) {
                    h4 { (scene.title) }
                    div.layers {
                        @for (name, shown) in &scene.layers { figure { (picture(shown)) figcaption { (name) } } }
                    }
                }
            }
        }
    }
}

/// Names and colours.
pub fn legend(entries: &[(String, [u8; 3])]) -> Markup {
    html! {
        ul.legend { @for (name, color) in entries { li { (swatch(*color)) (name) } } }
    }
}

/// A square of a colour.
pub fn swatch([red, green, blue]: [u8; 3]) -> Markup {
    html! { span.swatch aria-hidden="true" style=(format!("background:rgb({red},{green},{blue})")) {} }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_lie_in_the_page_and_captions_are_escaped() {
        let shown = Picture { jpeg: vec![255, 216, 255], size: (2, 3), alt: "a \"b\"".into() };
        let text = sheet(&[Captioned { picture: shown.clone(), title: "<script>".into(), note: "seed 1".into() }]).into_string();
        let image = "<img src=\"data:image/jpeg;base64,/9j/\" width=\"3\" height=\"2\" alt=\"a &quot;b&quot;\"";
        assert!(text.contains(image) && text.contains("&lt;script&gt;<small>seed 1</small>"), "{text}");
        let layers = vec![("photo".to_string(), shown.clone()), ("run".to_string(), shown)];
        let text = comparisons(&[Comparison { title: "im_0".into(), layers, first: (0, 1) }]).into_string();
        assert!(text.contains("data-left=\"0\" data-right=\"1\"") && text.matches("<img").count() == 2, "{text}");
    }
}
