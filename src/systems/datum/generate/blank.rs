//! Pictures that show nothing: what a filter paints over, and what half precision beyond its range decodes to.

use crate::base::Result;
use crate::io::images::RgbImage;

/// Other seeds that a blank picture gets.
pub const REDRAWS: u32 = 3;
/// Largest standard deviation of a channel of a blank picture, in levels of 0…255. Streets in the densest drawn fog have 4.
const LEVELS: f64 = 2.0;

/// An image to be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Its number.
    pub j: u64,
    /// How often it was blank.
    pub redraws: u32,
}

/// True for a picture of next to one colour.
pub fn is_blank(picture: &RgbImage) -> bool {
    (0..3).all(|channel| {
        let values = || picture.pixels.iter().skip(channel).step_by(3).map(|value| f64::from(*value));
        let count = (picture.pixels.len() / 3).max(1) as f64;
        let mean = values().sum::<f64>() / count;
        values().map(|value| (value - mean).powi(2)).sum::<f64>() / count < LEVELS * LEVELS
    })
}

/// Draws the images `numbers`, blank ones again where `may_redraw`.
///
/// # Errors
/// Those of `draw`, which gives a picture for each item.
pub fn draw_all(
    numbers: &[u64],
    may_redraw: bool,
    mut draw: impl FnMut(&[Item]) -> Result<Vec<RgbImage>>,
) -> Result<Vec<(Item, RgbImage)>> {
    let first: Vec<Item> = numbers.iter().map(|&j| Item { j, redraws: 0 }).collect();
    let pictures = draw(&first)?;
    let mut drawn: Vec<_> = first.into_iter().zip(pictures).collect();
    for redraws in 1..=if may_redraw { REDRAWS } else { 0 } {
        let blank: Vec<usize> = (0..drawn.len()).filter(|at| is_blank(&drawn[*at].1)).collect();
        if blank.is_empty() {
            break;
        }
        let items: Vec<Item> = blank.iter().map(|at| Item { redraws, ..drawn[*at].0 }).collect();
        let pictures = draw(&items)?;
        for (at, again) in blank.into_iter().zip(items.into_iter().zip(pictures)) {
            drawn[at] = again;
        }
    }
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(spread: u8) -> RgbImage {
        let pixels = (0..3 * 64).map(|i| if i / 3 % 2 == 0 { 100 } else { 100 + spread }).collect();
        RgbImage { height: 8, width: 8, pixels }
    }

    #[test]
    fn one_colour_is_blank_in_all_channels_alone() {
        assert!(is_blank(&picture(0)) && is_blank(&picture(3)) && !is_blank(&picture(5)));
        let mut red = picture(0);
        red.pixels.iter_mut().step_by(3).enumerate().for_each(|(i, value)| *value = (i * 4) as u8);
        assert!(!is_blank(&red));
    }

    #[test]
    fn blank_pictures_are_drawn_again_a_few_times() {
        let mut calls = Vec::new();
        // Image 4 is blank once, image 7 always.
        let draw = |items: &[Item]| {
            calls.push(items.iter().map(|item| (item.j, item.redraws)).collect::<Vec<_>>());
            Ok(items.iter().map(|item| picture(if item.j == 7 || (item.j == 4 && item.redraws == 0) { 0 } else { 90 })).collect())
        };
        let drawn = draw_all(&[3, 4, 7], true, draw).unwrap();
        let redraws: Vec<_> = drawn.iter().map(|(item, picture)| (item.j, item.redraws, is_blank(picture))).collect();
        assert_eq!(redraws, [(3, 0, false), (4, 1, false), (7, 3, true)]);
        assert_eq!(calls, [vec![(3, 0), (4, 0), (7, 0)], vec![(4, 1), (7, 1)], vec![(7, 2)], vec![(7, 3)]]);
        let once = draw_all(&[1], false, |items| Ok(items.iter().map(|_| picture(0)).collect())).unwrap();
        assert_eq!(once[0].0, Item { j: 1, redraws: 0 });
    }
}
