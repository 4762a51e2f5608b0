//! Tables whose numbers stand in columns.

use maud::{Markup, html};

/// A table with a header; the first column names the rows.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Says what the table shows; also for screen readers.
    pub caption: String,
    /// Column heads.
    pub head: Vec<Cell>,
    /// Rows as long as the head.
    pub rows: Vec<Row>,
}

/// One row.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Its cells, the name first.
    pub cells: Vec<Cell>,
    /// Set apart: sums, means.
    pub strong: bool,
    /// Less important than the others.
    pub faint: bool,
}

/// One cell.
#[derive(Debug, Clone)]
pub struct Cell {
    content: Markup,
    number: bool,
}

impl Cell {
    /// Text, left-aligned.
    pub fn text(text: impl AsRef<str>) -> Self {
        Self { content: html! { (text.as_ref()) }, number: false }
    }

    /// A number, right-aligned with equal digits.
    pub fn number(text: impl AsRef<str>) -> Self {
        Self { content: html! { (text.as_ref()) }, number: true }
    }

    /// Code-like text: paths, keys, values.
    pub fn code(text: impl AsRef<str>) -> Self {
        Self { content: html! { code { (text.as_ref()) } }, number: false }
    }

    /// Anything, left-aligned.
    pub fn markup(content: Markup) -> Self {
        Self { content, number: false }
    }
}

impl Row {
    /// An ordinary row.
    pub fn new(cells: Vec<Cell>) -> Self {
        Self { cells, ..Self::default() }
    }

    /// A row set apart.
    pub fn strong(cells: Vec<Cell>) -> Self {
        Self { cells, strong: true, faint: false }
    }
}

/// The table; wide ones scroll within the page.
pub fn table(table: &Table) -> Markup {
    let class = |cell: &Cell| cell.number.then_some("n");
    html! {
        div.scroll {
            table {
                @if !table.caption.is_empty() { caption { (table.caption) } }
                @if !table.head.is_empty() {
                    thead { tr { @for cell in &table.head { th scope="col" class=[class(cell)] { (cell.content) } } } }
                }
                tbody {
                    @for row in &table.rows {
                        tr.strong[row.strong].faint[row.faint] {
                            @for (column, cell) in row.cells.iter().enumerate() {
                                @if column == 0 { th scope="row" class=[class(cell)] { (cell.content) } }
                                @else { td class=[class(cell)] { (cell.content) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A difference of two values of 0…1 in points, always with its sign: `+2.3`, `−0.4`, `±0.0`; empty where one is missing.
pub fn points(from: Option<f64>, to: Option<f64>) -> String {
    let (Some(from), Some(to)) = (from, to) else { return String::new() };
    let tenths = (1000.0 * (to - from)).round();
    match tenths {
        _ if !tenths.is_finite() => String::new(),
        0.0 => "±0.0".into(),
        _ => format!("{}{:.1}", if tenths > 0.0 { '+' } else { '−' }, tenths.abs() / 10.0),
    }
}

/// A bar from the middle to the left (worse) or right (better), as long as the difference; nothing where one is missing.
pub fn difference_bar(from: Option<f64>, to: Option<f64>, largest: f64) -> Markup {
    let share = match (from, to) {
        (Some(from), Some(to)) if largest > 0.0 && (to - from).is_finite() => ((to - from) / largest).clamp(-1.0, 1.0),
        _ => 0.0,
    };
    let (left, width) = (50.0 + 50.0 * share.min(0.0), 50.0 * share.abs());
    html! { span.bar aria-hidden="true" { @if width > 0.0 { i.worse[share < 0.0] style=(format!("left:{left:.1}%;width:{width:.1}%")) {} } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_escaped_and_numbers_are_marked() {
        let row = Row::strong(vec![Cell::text("<b>"), Cell::number("1 < 2"), Cell::code("a&b")]);
        let head = vec![Cell::text("name"), Cell::number("IoU"), Cell::text("")];
        let text = table(&Table { caption: "c<d".into(), head, rows: vec![row] }).into_string();
        for part in ["<caption>c&lt;d", "&lt;b&gt;", "<td class=\"n\">1 &lt; 2", "<code>a&amp;b", "<tr class=\"strong\">"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("<th scope=\"col\" class=\"n\">IoU") && text.contains("<th scope=\"row\">"), "{text}");
        assert!(!table(&Table::default()).into_string().contains("thead"));
    }

    #[test]
    fn differences_carry_their_sign() {
        let from = Some(0.5);
        let texts = [Some(0.523), Some(0.496), Some(0.50004), None, Some(f64::NAN)].map(|to| points(from, to));
        assert_eq!(texts, ["+2.3", "−0.4", "±0.0", "", ""]);
        assert!(difference_bar(from, Some(0.4), 0.2).into_string().contains("class=\"worse\" style=\"left:25.0%;width:25.0%\""));
        for nothing in [difference_bar(None, Some(0.4), 0.2), difference_bar(from, from, 0.0)] {
            assert!(!nothing.into_string().contains("<i"));
        }
    }
}
