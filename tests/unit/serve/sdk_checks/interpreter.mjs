// What @e2b/code-interpreter does with the server.
//
//     node interpreter.mjs PYTHON          SDK_FOLDER has node_modules
//
// Prints {name of a check: "" or what went wrong} as JSON.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'

const require = createRequire(`${process.env.SDK_FOLDER}/`)
const { Sandbox } = require('@e2b/code-interpreter')
const checks = {
  async basic(box) {
    const execution = await box.runCode('x = 1; x + 1')
    assert.equal(execution.text, '2')
    assert.equal((await box.runCode('x')).text, '1')
  },
  async streams(box) {
    const out = []
    const execution = await box.runCode("print('one')", { onStdout: (m) => out.push(m.line) })
    assert.deepEqual(out, ['one\n'])
    assert.deepEqual(execution.logs.stdout, ['one\n'])
  },
  async errors(box) {
    assert.equal((await box.runCode('1/0')).error.name, 'ZeroDivisionError')
  },
  async charts(box) {
    const code = "import matplotlib.pyplot as plt\nplt.bar(['a'], [1]); plt.show()"
    const [result] = (await box.runCode(code)).results
    assert.ok(result.png)
    assert.equal(result.chart.type, 'bar')
    assert.equal(result.chart.elements[0].label, 'a')
  },
  async contexts(box) {
    const context = await box.createCodeContext({ cwd: '/tmp' })
    assert.equal((await box.runCode('import os; os.getcwd()', { context })).text, '/tmp')
    assert.ok((await box.listCodeContexts()).some((one) => one.id === context.id))
    await box.restartCodeContext(context)
    await box.removeCodeContext(context)
    await assert.rejects(box.runCode('1', { context }))
  },
  async variables(box) {
    const code = "import os; os.environ.get('A')"
    assert.equal((await box.runCode(code, { envs: { A: '1' } })).text, '1')
  },
  async timeLimit(box) {
    await assert.rejects(box.runCode('while True: pass', { timeoutMs: 1500 }))
    assert.equal((await box.runCode('1', { timeoutMs: 100000 })).text, '1')
  },
}

const results = {}
const box = await Sandbox.create({
  timeoutMs: 600000,
  envs: { VOIDBOX_INTERPRETER: process.argv[2] },
})
try {
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check(box)
      results[name] = ''
    } catch (error) {
      results[name] = String(error.stack)
    }
  }
} finally {
  await box.kill()
}
console.log(JSON.stringify(results))
