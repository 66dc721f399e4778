//! Block backends: raw files and the copy-on-write root volume.
