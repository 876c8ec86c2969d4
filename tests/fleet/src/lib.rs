//! Tests of whole fleets: see `tests/`. The library itself is empty, so that nothing but these tests is built with the
//! simulated runtime.
