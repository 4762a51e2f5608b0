//! Sizes in recipes.

use serde::{Deserialize, Serialize};

/// Image size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// (height, width), none for 0×0.
pub fn frame(size: Size) -> Option<(usize, usize)> {
    (size.height > 0 && size.width > 0).then_some((size.height, size.width))
}
