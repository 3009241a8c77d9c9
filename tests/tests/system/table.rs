//! The C table itself, driven by a script through `ctypes`: what the tools do not ask for.
//!
//! The same memory for input and output, two operations at once, lengths and buffers that are too small, what
//! C_GetMechanismInfo says against what the …Init functions do, keys that want the PIN each time.

use mayfly_tests::{Network, python};

#[test]
fn the_table_keeps_its_rules() {
    let network = Network::three();
    let script = network.write("table.py", include_bytes!("table.py"));
    let ran = network.agent(1).tool(&python().display().to_string(), &[&script]).ok();
    assert!(ran.text().contains("all done"), "{ran}");
}
