//! Writes the event files that tests/golden/report_tensorboard.py reads back with TensorBoard.

use datum::base::metrics::{Metrics, Sink};
use datum::report::tensorboard::EventFile;

#[test]
fn a_run_and_its_resumption() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("DATUM_EVENTS").map_or(temporary.path().to_path_buf(), Into::into);
    let mut events = EventFile::create(&folder, 0).unwrap();
    for step in 1..=9u32 {
        events.record(step.into(), &Metrics::from([("loss".into(), 1.0 / f64::from(step)), ("val/mIoU".into(), 0.5)])).unwrap();
    }
    let mut picture = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(5, 3, image::Rgb([250, 170, 30])).write_to(&mut picture, image::ImageFormat::Png).unwrap();
    events.image(3, "sample", picture.get_ref()).unwrap();
    drop(events);
    let mut events = EventFile::create(&folder, 5).unwrap();
    for step in 6..=7 {
        events.record(step, &Metrics::from([("loss".into(), 10.0)])).unwrap();
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
}
