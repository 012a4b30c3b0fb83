//! Nodes on loopback: who is let in, what bytes of strangers come to, and that SQL over slots elsewhere gives the same rows.

mod engine;
mod handshakes;
mod nodes;
mod selects;
