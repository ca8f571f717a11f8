// What E2B's JavaScript SDK does with the server: node checks.mjs FOLDER, with NODE_PATH's package
// beside it. Prints {name of a check: "" or what went wrong} as JSON.

import { createRequire } from 'node:module'
import assert from 'node:assert/strict'
import process from 'node:process'

const require = createRequire(`${process.env.SDK_FOLDER}/package.json`)
const { Sandbox, Template, CommandExitError, NotFoundError, AuthenticationError } = require('e2b')
const folder = process.argv[2]
const DEADLINE_MS = 60_000

async function waitUntil(condition, what) {
  const deadline = Date.now() + DEADLINE_MS
  while (!(await condition())) {
    assert(Date.now() < deadline, what)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

const checks = {
  async commands(box) {
    const result = await box.commands.run('echo out; echo err >&2; echo $A', { envs: { A: '1' }, cwd: folder })
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n1\n', 'err\n', 0])
    await assert.rejects(box.commands.run('exit 7'), (error) => error instanceof CommandExitError && error.exitCode === 7)
    await assert.rejects(box.commands.run('sleep 1000', { timeoutMs: 2000 }))
  },
  async background(box) {
    const handle = await box.commands.run('read x; echo got $x', { background: true, stdin: true })
    const listed = await box.commands.list()
    assert(listed.some((one) => one.pid === handle.pid))
    const again = await box.commands.connect(handle.pid)
    await box.commands.sendStdin(handle.pid, 'this\n')
    assert.equal((await handle.wait()).stdout, 'got this\n')
    assert.equal((await again.wait()).stdout, 'got this\n')
    const sleeping = await box.commands.run('sleep 1000', { background: true })
    assert.equal(await sleeping.kill(), true)
    await waitUntil(async () => !(await box.commands.kill(sleeping.pid)), 'it is gone')
  },
  async pty(box) {
    let seen = ''
    const decoder = new TextDecoder()
    const handle = await box.pty.create({ rows: 33, cols: 99, onData: (data) => { seen += decoder.decode(data) } })
    await box.pty.sendInput(handle.pid, new TextEncoder().encode("stty size; echo do''ne\n"))
    await waitUntil(() => seen.includes('done'), 'the shell answers')
    assert(seen.includes('33 99'))
    await box.pty.kill(handle.pid)
  },
  async files(box) {
    const path = `${folder}/js/ü b.txt`
    assert.equal((await box.files.write(path, 'hello')).path, path)
    assert.equal(await box.files.read(path), 'hello')
    const data = new Uint8Array(2_000_000).fill(7)
    await box.files.write(path, data.buffer)
    assert.deepEqual(Buffer.from(await box.files.read(path, { format: 'bytes' })).equals(Buffer.from(data)), true)
    await box.files.write(path, '')
    assert.equal(await box.files.read(path), '')
    await assert.rejects(box.files.read(`${folder}/none`), NotFoundError)
    assert.equal(await box.files.makeDir(`${folder}/js/d`), true)
    assert.equal(await box.files.makeDir(`${folder}/js/d`), false)
    assert.deepEqual((await box.files.list(`${folder}/js`)).map((one) => one.name).sort(), ['d', 'ü b.txt'])
    await box.files.rename(path, `${folder}/js/moved`)
    assert.equal(await box.files.exists(path), false)
    assert.equal((await box.files.getInfo(`${folder}/js/moved`)).type, 'file')
    await box.files.remove(`${folder}/js`)
  },
  async watch(box) {
    await box.files.makeDir(`${folder}/watched-js`)
    const seen = []
    const watch = await box.files.watchDir(`${folder}/watched-js`, (event) => { seen.push(event.name) })
    await box.files.write(`${folder}/watched-js/new`, 'x')
    await waitUntil(() => seen.includes('new'), 'the event comes')
    await watch.stop()
  },
  async signed(box) {
    await box.files.write(`${folder}/signed-js`, 'signed')
    const url = await box.downloadUrl(`${folder}/signed-js`, { useSignatureExpiration: 600 })
    assert.equal(await (await fetch(url)).text(), 'signed')
  },
  async sandboxes(box) {
    const info = await box.getInfo()
    assert.equal(info.metadata.check, 'js & ü')
    const page = Sandbox.list({ query: { metadata: { check: 'js & ü' } } })
    assert((await page.nextItems()).some((one) => one.sandboxId === box.sandboxId))
    const again = await Sandbox.connect(box.sandboxId)
    assert.equal((await again.commands.run('echo again')).stdout, 'again\n')
    await box.setTimeout(900_000)
    assert((await box.getInfo()).endAt > info.endAt)
    await assert.rejects(Sandbox.create('no-such-template'))
    await assert.rejects(Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
  },
  async kill() {
    const other = await Sandbox.create({ timeoutMs: 60_000 })
    assert.equal(await other.isRunning(), true)
    await other.kill()
    assert.equal(await other.isRunning(), false)
    await assert.rejects(other.commands.run('true'))
    assert.equal(await Sandbox.kill('nosuchsandbox'), false)
  },
  async templates() {
    if (!Template?.assignTags) return // of older ones
    const size = { cpuCount: 1, memoryMB: 128 } // older ones ask for 2 CPUs and 1 GiB by themselves
    const build = async (name, options = {}) => {
      const template = Template()
        .fromTemplate('base')
        .runCmd(`mkdir -p ${folder}; cat /proc/sys/kernel/random/uuid > ${folder}/dice-js`)
      const lines = []
      const onBuildLogs = (entry) => lines.push(entry.message)
      await Template.build(template, name, { ...size, ...options, onBuildLogs })
      return lines.some((line) => line.startsWith('CACHED RUN'))
    }
    const look = async (name) => {
      const other = await Sandbox.create(name, { timeoutMs: 60_000 })
      const { stdout } = await other.commands.run(`cat ${folder}/dice-js`)
      await other.kill()
      return stdout
    }
    const name = `of-js-${process.pid}` // others run in the same server
    assert.equal(await build(`${name}:v1`), false)
    const dice = await look(`${name}:v1`)
    assert.equal(await build(name, { tags: ['v2'] }), true)
    assert.equal(await look(`${name}:v2`), dice)
    assert.equal(await build(`${name}:v3`, { skipCache: true }), false)
    assert.notEqual(await look(`${name}:v3`), dice)
    assert.deepEqual((await Template.assignTags(`${name}:v1`, 'default')).tags, ['default'])
    await Template.removeTags(name, ['v1', 'v3'])
    const tags = (await Template.getTags(name)).map((one) => one.tag)
    assert.deepEqual(tags.sort(), ['default', 'v2'])
  },
  async pause() {
    const other = await Sandbox.create({ timeoutMs: 60_000 })
    await (other.pause ?? other.betaPause).call(other)
    const back = await Sandbox.connect(other.sandboxId)
    assert.equal((await back.commands.run('echo back')).stdout, 'back\n')
    await back.kill()
  },
}

const results = {}
const box = await Sandbox.create({ timeoutMs: 600_000, metadata: { check: 'js & ü' } })
await box.files.makeDir(folder)
const without = (process.env.WITHOUT ?? '').split(' ')
for (const [name, run] of Object.entries(checks)) {
  if (without.includes(name)) continue
  try {
    await run(box)
    results[name] = ''
  } catch (error) {
    results[name] = String(error.stack ?? error).slice(0, 3000)
  }
}
await box.kill()
console.log(JSON.stringify(results))
process.exit(0)
