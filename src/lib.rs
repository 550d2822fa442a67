//! Chiton.
