//! What users run: compositions of the parts in the folders below. No system knows another; what they share is in [`shared`].

pub mod clouds;
pub mod datum;
pub mod shared;
