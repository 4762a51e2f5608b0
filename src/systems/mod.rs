//! What users run: compositions of the parts in the folders below. No system knows another.

pub mod clouds;
pub mod datum;
