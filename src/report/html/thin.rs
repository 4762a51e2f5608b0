//! Fewer points for long curves.

/// A point of a curve.
pub type Point = (f64, f64);

/// At most `most` points (4 or more) of `points`: the first, the last, and of each of equally long parts between them the least
/// and the greatest in their order, so that no peak is lost. Values that are no numbers are left out.
pub fn thin(points: &[Point], most: usize) -> Vec<Point> {
    let points: Vec<Point> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let [first, inner @ .., last] = points.as_slice() else { return points };
    let parts = most.max(4) / 2 - 1;
    if inner.len() <= 2 * parts {
        return points;
    }
    let mut kept = vec![*first];
    for part in 0..parts {
        let range = &inner[part * inner.len() / parts..(part + 1) * inner.len() / parts];
        let by_value = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1).then(a.0.total_cmp(&b.0));
        if let (Some(least), Some(greatest)) = (range.iter().min_by(by_value), range.iter().max_by(by_value)) {
            let (early, late) = if least.0 <= greatest.0 { (least, greatest) } else { (greatest, least) };
            kept.push(*early);
            if early != late {
                kept.push(*late);
            }
        }
    }
    kept.push(*last);
    kept
}

/// The mean of each point and its `window / 2` neighbours on either side; fewer at the ends.
pub fn smooth(points: &[Point], window: usize) -> Vec<Point> {
    let points: Vec<Point> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let half = window / 2;
    let mut sums = vec![0.0];
    for (_, y) in &points {
        sums.push(sums[sums.len() - 1] + y);
    }
    let mean = |at: usize| {
        let (from, to) = (at.saturating_sub(half), (at + half + 1).min(points.len()));
        (sums[to] - sums[from]) / (to - from) as f64
    };
    points.iter().enumerate().map(|(at, (x, _))| (*x, mean(at))).collect()
}

/// True for curves that go up and down far more than from one end of their range to the other.
pub fn is_noisy(points: &[Point]) -> bool {
    let values = || points.iter().map(|(_, y)| *y).filter(|y| y.is_finite());
    let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
    let travel: f64 = values().zip(values().skip(1)).map(|(a, b)| (a - b).abs()).sum();
    points.len() >= 50 && travel > 4.0 * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_keep_ends_and_peaks() {
        let mut points: Vec<Point> = (0..40_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        points[12_345].1 = 1000.0;
        points[30_001].1 = -1000.0;
        let thinned = thin(&points, 1000);
        assert!(thinned.len() <= 1000, "{}", thinned.len());
        assert!(thinned.contains(&points[12_345]) && thinned.contains(&points[30_001]));
        assert_eq!((thinned[0], thinned[thinned.len() - 1]), (points[0], points[39_999]));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn short_curves_stay_and_what_is_no_number_goes() {
        assert!(thin(&[], 1000).is_empty());
        assert_eq!(thin(&[(1.0, 2.0)], 1000), [(1.0, 2.0)]);
        let broken = [(1.0, 2.0), (2.0, f64::NAN), (3.0, f64::INFINITY), (4.0, 1.0)];
        assert_eq!(thin(&broken, 1000), [(1.0, 2.0), (4.0, 1.0)]);
        let flat: Vec<Point> = (0..1000).map(|i| (f64::from(i), 1.0)).collect();
        assert_eq!(thin(&flat, 1000), flat);
        assert!(thin(&flat, 100).len() <= 100);
    }

    #[test]
    fn smoothing_keeps_lines_and_flattens_noise() {
        let line: Vec<Point> = (0..100).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        assert!(smooth(&line, 11).iter().zip(&line).skip(5).take(90).all(|(a, b)| (a.1 - b.1).abs() < 1e-9));
        assert!(smooth(&[], 11).is_empty());
        let noise: Vec<Point> = (0..100).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!(is_noisy(&noise) && !is_noisy(&line) && !is_noisy(&noise[..10]));
        assert!(smooth(&noise, 10).iter().skip(10).take(80).all(|(_, y)| (y - 0.5).abs() < 0.06));
    }
}
