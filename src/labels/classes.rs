//! Class tables.

/// The classes of a dataset in train-id order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classes {
    /// Names.
    pub names: Vec<String>,
    /// Colour of each class, RGB.
    pub palette: Vec<[u8; 3]>,
    /// True for things (countable objects), false for stuff (regions).
    pub things: Vec<bool>,
}

impl Classes {
    /// A table of `names` with well separated colours and no things.
    pub fn new(names: Vec<String>) -> Self {
        let palette = (0..names.len()).map(spread_color).collect();
        let things = vec![false; names.len()];
        Self { names, palette, things }
    }

    /// Number of classes.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True without classes, as for plain image folders.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The train id of a name.
    pub fn train_id(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// Train ids of the things.
    pub fn thing_ids(&self) -> Vec<usize> {
        (0..self.len()).filter(|&id| self.things[id]).collect()
    }
}

/// The colour map of PASCAL VOC, shifted by one so that no class is black: bits of the index, spread over the channels.
fn spread_color(index: usize) -> [u8; 3] {
    let mut rest = index + 1;
    let mut color = [0u8; 3];
    for bit in (0..8).rev() {
        for (channel, value) in color.iter_mut().enumerate() {
            *value |= ((rest >> channel & 1) as u8) << bit;
        }
        rest >>= 3;
    }
    color
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_colors_are_those_of_voc_and_distinct() {
        let classes = Classes::new((0..40).map(|i| i.to_string()).collect());
        assert_eq!(classes.palette[..4], [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]);
        let distinct: std::collections::BTreeSet<_> = classes.palette.iter().collect();
        assert_eq!(distinct.len(), 40);
    }
}
