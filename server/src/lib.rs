//! A small OpAMP control plane.
