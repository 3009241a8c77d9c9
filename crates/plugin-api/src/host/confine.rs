//! What the host gives up before it loads a plugin: descriptors, privileges. System calls: `filter`.

/// Descriptors, signals and privileges; `keep` are the inherited descriptors.
pub(crate) fn basics(keep: &[i32]) -> Result<(), String> {
    close_others(keep)?;
    ignore_signals();
    // SAFETY: sets a flag of this process that cannot be taken back.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(format!("no_new_privs: {}", std::io::Error::last_os_error()));
    }
    Ok(())
}

/// Closes what an agent's libraries may have left open without close-on-exec.
fn close_others(keep: &[i32]) -> Result<(), String> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|number| u32::try_from(*number).ok()).collect();
    keep.sort_unstable();
    let mut from = 3u32;
    for number in keep.into_iter().chain([u32::MAX]) {
        if number > from {
            let to = if number == u32::MAX { u32::MAX } else { number - 1 };
            // SAFETY: nothing in this process owns a descriptor in this range: the inherited ones are outside it, and
            // none has been opened yet but the standard three.
            if unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) } != 0 {
                return Err(format!("close_range: {}", std::io::Error::last_os_error()));
            }
        }
        from = number.saturating_add(1);
    }
    Ok(())
}

/// The host ends with its socket: a Ctrl-C or a service manager's SIGTERM to the whole group must not take the vault
/// away from an agent that is still closing.
fn ignore_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: SIG_IGN is a valid disposition for these signals.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
