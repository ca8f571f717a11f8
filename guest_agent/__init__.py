"""PID 1 and agent of a voidbox guest, in one process and one thread.

boot         what PID 1 does first: mounts, modules, network, secret
root         the root that commands see, where it is an image's
mounts       what the host has the guest mount: folders, and volumes on disks (volume_disk)
plain_files  reads and writes small files there, whatever is in the way
loop         epoll, timers, children
server       listens on vsock and on the second serial port
  activity     since when nobody has used the guest
  connection   one client: frames in, requests started, frames out
    commands     EXEC, ATTACH, PROCESSES, KILL, RESIZE
      process      a child: its pipes or terminal, its end
        time_limit   a command's, which stands still with the guest
        cgroups      all that came of a command, wherever it went
    files        FILE_*: reads, writes, lists
      watch        FILE_WATCH by inotify
    system       METRICS, SET_CLOCK, SHUTDOWN
protocol, packing, serial_link, watch_tree    shared with voidbox/agent (symbolic links)
relay        the command voidbox-relay; relay_protocol is shared with voidbox/sandbox

Standard library only; it runs on the guest's Python and imports nothing of voidbox.
"""
