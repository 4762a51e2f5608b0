//! From the numbers in label files to train ids and back.

use super::{IGNORE, LabelMap};
use std::collections::BTreeMap;

/// How file ids become train ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdMap {
    /// Files hold train ids below `num_classes`; `ignore_index` and 255 are ignored; every other id is an error.
    TrainIds {
        /// Number of classes.
        num_classes: usize,
        /// The file's number for "no class".
        ignore_index: u16,
    },
    /// File id → train id. Ids that are not listed are ignored.
    Table(BTreeMap<u16, u8>),
}

impl IdMap {
    /// The train id of a file id; `None` if the file may not hold it.
    pub fn train_id(&self, file_id: u16) -> Option<u8> {
        match self {
            Self::TrainIds { num_classes, ignore_index } => match usize::from(file_id) {
                id if file_id == *ignore_index || id == usize::from(IGNORE) => Some(IGNORE),
                id if id < *num_classes => Some(id as u8),
                _ => None,
            },
            Self::Table(table) => Some(table.get(&file_id).copied().unwrap_or(IGNORE)),
        }
    }

    /// Converts the pixels of a label file.
    ///
    /// # Errors
    /// The ids that the file may not hold, each with its number of pixels.
    pub fn apply(&self, height: usize, width: usize, file_ids: &[u16]) -> Result<LabelMap, BTreeMap<u16, u64>> {
        let mut wrong = BTreeMap::new();
        let mut table: Vec<Option<Option<u8>>> = vec![None; 1 << 16];
        let mut convert = |&id: &u16| {
            let train_id = *table[usize::from(id)].get_or_insert_with(|| self.train_id(id));
            train_id.unwrap_or_else(|| {
                *wrong.entry(id).or_insert(0) += 1;
                IGNORE
            })
        };
        let ids = file_ids.iter().map(&mut convert).collect();
        if wrong.is_empty() { Ok(LabelMap { height, width, ids }) } else { Err(wrong) }
    }

    /// Train ids → file ids: the smallest file id of each class; ignored pixels become `ignore_index`.
    pub fn to_label_ids(&self, labels: &LabelMap, ignore_index: u8) -> Vec<u8> {
        let mut inverse: [u8; 256] = std::array::from_fn(|id| id as u8);
        if let Self::Table(table) = self {
            for (&file_id, &train_id) in table.iter().rev() {
                inverse[usize::from(train_id)] = file_id.min(255) as u8;
            }
        }
        inverse[usize::from(IGNORE)] = ignore_index;
        labels.ids.iter().map(|&id| inverse[usize::from(id)]).collect()
    }
}

/// Ids with their number of pixels, for messages: `id 12 (40 pixels), id 99 (1 pixel)`; long lists are cut.
pub fn list_ids(counts: &BTreeMap<u16, u64>) -> String {
    let part = |(id, &count): (&u16, &u64)| format!("id {id} ({count} pixel{})", if count == 1 { "" } else { "s" });
    let mut parts: Vec<String> = counts.iter().take(8).map(part).collect();
    if counts.len() > 8 {
        parts.push(format!("{} more", counts.len() - 8));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_ignores_what_it_does_not_list_and_inverts_to_the_smallest_id() {
        let map = IdMap::Table(BTreeMap::from([(7, 0), (13, 1), (24, 1)]));
        let labels = map.apply(1, 4, &[7, 24, 13, 300]).unwrap();
        assert_eq!(labels.ids, [0, 1, 1, IGNORE]);
        assert_eq!(map.to_label_ids(&labels, 0), [7, 13, 13, 0]);
    }

    #[test]
    fn train_ids_out_of_range_are_counted() {
        let map = IdMap::TrainIds { num_classes: 2, ignore_index: 11 };
        assert_eq!(map.apply(1, 4, &[0, 1, 11, 255]).unwrap().ids, [0, 1, IGNORE, IGNORE]);
        assert_eq!(map.apply(1, 4, &[0, 2, 2, 300]).unwrap_err(), BTreeMap::from([(2, 2), (300, 1)]));
    }
}
