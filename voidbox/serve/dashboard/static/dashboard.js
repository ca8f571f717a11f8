'use strict'

// What is to be asked about before it is done.
document.addEventListener('submit', (event) => {
  const question = event.target.dataset.confirm
  if (question && !confirm(question)) event.preventDefault()
})

// A terminal in the sandbox: bytes both ways, sizes as text.
function openTerminal(element) {
  const terminal = new Terminal({ fontSize: 14, cursorBlink: true })
  const fit = new FitAddon.FitAddon()
  terminal.loadAddon(fit)
  terminal.open(element)
  fit.fit()
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws'
  const path = `${element.dataset.path}?rows=${terminal.rows}&cols=${terminal.cols}`
  const socket = new WebSocket(`${scheme}://${location.host}${path}`)
  socket.binaryType = 'arraybuffer'
  socket.onmessage = (event) => terminal.write(new Uint8Array(event.data))
  socket.onclose = (event) => terminal.write(`\r\n[${event.reason || 'the terminal is closed'}]\r\n`)
  const encoder = new TextEncoder()
  const open = () => socket.readyState === WebSocket.OPEN
  terminal.onData((text) => open() && socket.send(encoder.encode(text)))
  terminal.onResize(({ rows, cols }) => open() && socket.send(JSON.stringify({ rows, cols })))
  addEventListener('resize', () => fit.fit())
  terminal.focus()
}

document.addEventListener('click', (event) => {
  const button = event.target.closest('[data-terminal]')
  if (!button) return
  button.remove()
  const element = document.getElementById('terminal')
  element.hidden = false
  openTerminal(element)
})
