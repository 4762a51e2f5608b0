//! Connected regions of a mask.

/// The regions of a mask in which pixels touch at their sides (4-connectivity), each as its pixel numbers in ascending order.
/// Regions come in the order of their first pixels, row by row.
///
/// # Shapes
/// `mask` height · `width` values, row-major
pub fn components(mask: &[bool], width: usize) -> Vec<Vec<usize>> {
    let mut seen = vec![false; mask.len()];
    let mut found = Vec::new();
    for first in 0..mask.len() {
        if !mask[first] || seen[first] {
            continue;
        }
        seen[first] = true;
        let mut region = vec![first];
        let mut next = 0;
        while let Some(&at) = region.get(next) {
            next += 1;
            let x = at % width;
            let sides =
                [(x > 0, at.wrapping_sub(1)), (x + 1 < width, at + 1), (at >= width, at.wrapping_sub(width)), (true, at + width)];
            for (inside, side) in sides {
                if inside && side < mask.len() && mask[side] && !seen[side] {
                    seen[side] = true;
                    region.push(side);
                }
            }
        }
        region.sort_unstable();
        found.push(region);
    }
    found
}

/// What is left of a mask after a square of `side`² pixels (odd) was moved over it: pixels whose whole neighbourhood belongs to
/// it. Outside the picture counts as not belonging.
///
/// # Shapes
/// `mask` height · `width` values, row-major → same
pub fn erode(mask: &[bool], width: usize, side: usize) -> Vec<bool> {
    let reach = side / 2;
    let height = mask.len() / width.max(1);
    let keep = |at: usize| {
        let (y, x) = (at / width, at % width);
        let inside = y >= reach && x >= reach && y + reach < height && x + reach < width;
        inside && (y - reach..=y + reach).all(|y| mask[y * width + x - reach..=y * width + x + reach].iter().all(|there| *there))
    };
    (0..mask.len()).map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(text: &str) -> (Vec<bool>, usize) {
        let rows: Vec<&str> = text.split_whitespace().collect();
        (rows.concat().chars().map(|c| c == '#').collect(), rows[0].len())
    }

    #[test]
    fn corners_do_not_connect_and_lines_do_not_wrap() {
        let (mask, width) = mask("#..# #.## .#.# ...#");
        assert_eq!(components(&mask, width), [vec![0, 4], vec![3, 6, 7, 11, 15], vec![9]]);
        assert!(components(&[false; 6], 3).is_empty() && components(&[], 3).is_empty());
        assert_eq!(components(&[true; 6], 3), [vec![0, 1, 2, 3, 4, 5]]);
    }

    #[test]
    fn erosion_takes_the_rim() {
        let (full, width) = mask("##### ##### ##### ####.");
        let (left, _) = mask("..... .###. .##.. .....");
        assert_eq!(erode(&full, width, 3), left);
        assert_eq!(erode(&full, width, 1), full);
    }
}
