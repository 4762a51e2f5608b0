//! Connected regions of a mask.

/// The regions of a mask in which pixels touch at their sides (4-connectivity), each as its pixel numbers in ascending order.
/// Regions come in the order of their first pixels, row by row.
///
/// # Shapes
/// `mask` height · `width` values, row-major
pub fn components(mask: &[bool], width: usize) -> Vec<Vec<usize>> {
    regions(mask, width, &[(0, -1), (-1, 0), (1, 0), (0, 1)])
}

/// Like [`components`], where pixels also touch at their corners (8-connectivity).
pub fn touching(mask: &[bool], width: usize) -> Vec<Vec<usize>> {
    regions(mask, width, &[(-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)])
}

/// `neighbours` as steps (x, y).
fn regions(mask: &[bool], width: usize, neighbours: &[(isize, isize)]) -> Vec<Vec<usize>> {
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
            for (right, down) in neighbours {
                let Some(x) = (at % width).checked_add_signed(*right).filter(|x| *x < width) else { continue };
                let Some(y) = (at / width).checked_add_signed(*down) else { continue };
                let side = y * width + x;
                if side < mask.len() && mask[side] && !seen[side] {
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
        assert_eq!(touching(&mask, width), [vec![0, 3, 4, 6, 7, 9, 11, 15]]);
        assert_eq!(touching(&[true, false, false, false, true, false], 2), [vec![0], vec![4]]);
    }

    #[test]
    fn erosion_takes_the_rim() {
        let (full, width) = mask("##### ##### ##### ####.");
        let (left, _) = mask("..... .###. .##.. .....");
        assert_eq!(erode(&full, width, 3), left);
        assert_eq!(erode(&full, width, 1), full);
    }
}
