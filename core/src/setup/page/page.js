'use strict';
(() => {
  const SVG = 'http://www.w3.org/2000/svg';
  /* Between two looks, so that a figure that moves is not drawn more often than it is read. */
  const PAUSE = 150;
  /* A browser at work would show in what is measured. */
  const PAUSE_MEASURING = 1000;
  const RETRY = 1000;
  const STEPS = [
    ['Welcome', 'welcome'], ['Network', 'resume', 'server', 'keep_node'], ['Agreement', 'agreement'],
    ['Release', 'release'], ['Addresses and region', 'addresses', 'region'], ['Evaluation', 'evaluation'],
    ['Email', 'email'], ['Contact and wallets', 'payouts'], ['Registration', 'confirm', 'register'],
    ['Service', 'service'], ['Done', 'done'],
  ];
  const INTRO = {
    welcome: [
      'This turns the machine into a node of a Consensus network. It takes about five minutes, and you can stop at any point: the next setup goes on there.',
      'You need the address of the network, an email address, and three addresses to be paid at: EVM, Solana and Internet Computer. A wallet in this browser can fill those in.',
    ],
    addresses: ['Others reach the network through this machine at these addresses. What was found can be typed over.'],
    payouts: ['Payouts go to these addresses, and nobody can bring back what went to a mistyped one.'],
  };
  const INPUTS = {
    server: { type: 'url', autocomplete: 'url', placeholder: 'https:' + '/' + '/network.example' },
    port: { inputmode: 'numeric' },
    email: { type: 'email', autocomplete: 'email' },
    code: { autocomplete: 'one-time-code' },
    contact: { autocomplete: 'email' },
  };
  const CHOICES = {
    resume: [['Use this again', 'yes'], ['Start anew', 'no']],
    keep_node: [['Keep this registration', 'yes'], ['Register anew', 'no']],
    confirm: [['Register', 'yes'], ['Ask everything again', 'no']],
    service: [['Keep it running', 'yes'], ['I start it myself', 'no']],
  };
  const WALLETS = {
    evm_address: ['MetaMask', async () => {
      const accounts = await window.ethereum.request({ method: 'eth_requestAccounts' });
      return accounts[0];
    }, () => window.ethereum],
    solana_address: ['Phantom', async () => {
      const { publicKey } = await window.solana.connect();
      return publicKey.toString();
    }, () => window.solana],
    icp_address: ['Plug', async () => {
      await window.ic.plug.requestConnect();
      return String(window.ic.plug.principalId || await window.ic.plug.agent.getPrincipal());
    }, () => window.ic && window.ic.plug],
  };
  const $ = (id) => document.getElementById(id);
  const make = (parent, name, attributes = {}, content = '') => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = content;
    parent.append(element);
    return element;
  };
  const draw = (parent, name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
    return element;
  };
  /* What did not change is not touched: it would be read out again. */
  const text = (id, value) => { if ($(id).textContent !== value) $(id).textContent = value; };
  const count = (n) => n.toLocaleString('en', { maximumFractionDigits: n < 10 ? 1 : 0 });
  const mib = (n) => (n / 1048576).toLocaleString('en', { maximumFractionDigits: 1 }) + ' MiB';
  const words = (name) => name.replace('benchmark_', '').replaceAll('_', ' ');

  let view = null;
  let posting = false;

  const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);

  const problem = (why) => {
    text('problem', capital(why || ''));
    for (const input of $('fields').querySelectorAll('input')) input.setAttribute('aria-invalid', Boolean(why));
  };

  const answer = async (value, more = {}) => {
    if (posting || !view.question) return;
    posting = true;
    problem('');
    const buttons = [...$('buttons').querySelectorAll('button:enabled')];
    for (const button of buttons) button.setAttribute('aria-disabled', 'true');
    try {
      const body = JSON.stringify({ number: view.question.number, text: value, ...more });
      const told = await fetch('answer', { method: 'POST', headers: { 'content-type': 'application/json' }, body });
      if (!told.ok) {
        problem((await told.json()).message);
        const first = $('fields').querySelector('input');
        if (first) first.focus();
      }
    } catch {
      problem('setup does not answer; is it still running on its terminal?');
    }
    for (const button of buttons) button.removeAttribute('aria-disabled');
    posting = false;
  };

  const button = (label, kind, press) => {
    const made = make($('buttons'), 'button', { type: kind }, label);
    if (kind === 'submit') made.className = 'main';
    if (press) made.addEventListener('click', press);
    return made;
  };

  const field = (id, label, attributes, value = '') => {
    const box = make($('fields'), 'div');
    make(box, 'label', { for: id }, label);
    const input = make(box, 'input', {
      id, name: id, type: 'text', autocomplete: 'off', autocapitalize: 'off', spellcheck: 'false',
      'aria-describedby': 'problem', ...attributes,
    });
    input.value = value;
    return input;
  };

  const agreement = (question) => {
    const box = $('agreement');
    box.replaceChildren();
    for (const part of question.agreement.trim().split(/\n\s*\n/)) make(box, 'p', {}, part.replaceAll('\n', ' '));
    box.hidden = false;
    box.scrollTop = 0;
    const name = field('name', 'Your name', { autocomplete: 'name', autocapitalize: 'words' });
    const typed = field('words', 'Type I AGREE', {});
    make($('fields'), 'p', { class: 'hint', id: 'hint' }, 'The button opens when the agreement is read to its end. Your name is neither sent nor kept.');
    const accept = button('Accept', 'submit');
    accept.setAttribute('aria-describedby', 'hint');
    accept.disabled = true;
    button('I do not agree', 'button', () => answer('no'));
    const look = () => {
      if (box.hidden || box.scrollTop + box.clientHeight < box.scrollHeight - 4) return;
      if (accept.disabled) text('heard', 'The agreement was read to its end.');
      accept.disabled = false;
    };
    box.onscroll = look;
    look();
    return () => answer('yes', { name: name.value, words: typed.value });
  };

  let submit = () => {};
  const ask = (question) => {
    for (const id of ['reuse', 'fields', 'buttons', 'agreement']) $(id).replaceChildren();
    $('agreement').hidden = true;
    $('form').hidden = !question;
    problem(question && question.problem);
    if (!question) return;
    const { id, default: value } = question;
    for (const line of question.reuse) make($('reuse'), 'li', {}, line);
    let first = $('title');
    if (id === 'welcome') {
      first = button('Begin', 'submit');
      submit = () => answer('');
    } else if (id === 'agreement') {
      submit = agreement(question);
    } else if (question.yes_no) {
      const [yes, no] = CHOICES[id];
      button(yes[0], 'submit');
      submit = () => answer(yes[1]);
      button(no[0], 'button', () => answer(no[1]));
    } else {
      first = field('value', id === 'code' ? 'The code that was sent by email' : question.text, INPUTS[id] || {}, value || '');
      submit = () => answer(first.value);
      button('Continue', 'submit');
      if (id === 'code') button('Send another code', 'button', () => answer('again'));
      if (id === 'ipv6') button('It has none', 'button', () => answer('none'));
      if (WALLETS[id]) wallet(first, ...WALLETS[id]);
    }
    /* Without scrolling past what the question is about. */
    first.focus({ preventScroll: first === $('title') });
  };

  const wallet = (input, name, connect, has) => {
    button('Use ' + name, 'button', async () => {
      if (!has()) {
        problem('this browser has no ' + name + '; type the address');
        return;
      }
      try {
        const address = await connect();
        if (typeof address !== 'string') throw new Error('no address came');
        input.value = address;
        problem('');
        text('heard', 'The address of ' + name + ' is filled in.');
        input.focus();
      } catch (error) {
        problem(name + ': ' + String((error && error.message) || error).slice(0, 300));
      }
    });
  };
  $('form').addEventListener('submit', (event) => {
    event.preventDefault();
    submit();
  });

  const lines = (parent, news) => {
    for (const { kind, text: said } of news) {
      if (kind === 'heading') make(parent, 'h3', {}, said);
      else make(parent, 'p', { class: kind + (said.includes('\n') ? ' lines' : '') }, (kind === 'warning' ? '⚠ ' : '') + said);
    }
  };

  /* Only what is new is added: the rest was read out. */
  let told = [];
  const news = (all) => {
    const grows = told.every(({ kind, text: said }, i) => all[i] && all[i].kind === kind && all[i].text === said);
    const from = grows ? told.length : 0;
    const last = all.findLastIndex(({ kind }) => kind === 'heading');
    if (last >= from) $('news').replaceChildren();
    if (!grows) {
      $('news').replaceChildren();
      $('all').replaceChildren();
    }
    lines($('news'), all.slice(Math.max(from, last + 1)));
    lines($('all'), all.slice(from));
    $('before').hidden = !all.length;
    told = all;
  };

  const rows = [];
  const actions = (all) => {
    $('evaluation').hidden = !all.length;
    if (all.length < rows.length) {
      rows.length = 0;
      $('actions').replaceChildren();
    }
    all.forEach((action, i) => {
      if (!rows[i]) {
        const item = make($('actions'), 'li');
        const name = make(item, 'span');
        const percent = make(item, 'span');
        const bar = make(item, 'progress', { max: 100 });
        const summary = make(item, 'span', { class: 'summary' });
        rows[i] = { name, percent, bar, summary };
      }
      const { name, percent, bar, summary } = rows[i];
      name.textContent = words(action.name);
      percent.textContent = action.ok === false ? 'failed' : action.percent + ' %';
      percent.className = action.ok === false ? 'failed' : '';
      bar.value = action.percent;
      bar.setAttribute('aria-label', words(action.name));
      summary.textContent = action.summary;
      if (action.ok !== null && !rows[i].heard) {
        rows[i].heard = true;
        text('heard', words(action.name) + (action.ok ? ': ' : ' failed: ') + action.summary);
      }
    });
  };

  const LEFT = 64, RIGHT = 472, TOP = 8, BOTTOM = 132;
  const windows = (all) => {
    $('windows').hidden = !all.length;
    if (!all.length) return;
    const most = Math.max(...all, 1);
    const power = 10 ** Math.floor(Math.log10(most));
    const top = [1, 2, 5, 10].find((step) => step * power >= most) * power;
    const chart = $('chart');
    chart.replaceChildren();
    for (const part of [0, .5, 1]) {
      const y = BOTTOM - (BOTTOM - TOP) * part;
      draw(chart, 'line', { class: 'rule', x1: LEFT, x2: RIGHT, y1: y, y2: y });
      draw(chart, 'text', { x: LEFT - 6, y: y + 4, 'text-anchor': 'end' }).textContent = count(top * part);
    }
    const wide = (RIGHT - LEFT) / Math.max(all.length, 12);
    all.forEach((value, i) => {
      const height = (BOTTOM - TOP) * (value / top);
      draw(chart, 'rect', { class: 'bar', x: LEFT + i * wide + wide * .1, y: BOTTOM - height, width: wide * .8, height });
    });
    draw(chart, 'text', { x: LEFT, y: 154 }).textContent = 'first window';
    draw(chart, 'text', { x: RIGHT, y: 154, 'text-anchor': 'end' }).textContent = 'requests a second';
    text('slowest', `${all.length} ${all.length > 1 ? 'windows' : 'window'}: the slowest ${count(Math.min(...all))}, the last ${count(all.at(-1))} requests a second. `
      + 'The network wants 50 or more in each, and no loss of speed over time.');
  };

  const title = ({ part, finish, question }) => {
    if (finish) return finish.outcome === 'done' ? 'Done' : 'Setup has ended';
    if (question && question.id === 'resume') return 'An earlier setup left this';
    if (question && question.id === 'keep_node') return 'This machine has a node';
    return STEPS.find(([, ...parts]) => parts.includes(part))[0];
  };

  const steps = ({ part, finish }) => {
    const at = finish && finish.outcome === 'done' ? STEPS.length : STEPS.findIndex(([, ...parts]) => parts.includes(part));
    $('steps').replaceChildren();
    STEPS.forEach(([name], i) => {
      const item = make($('steps'), 'li');
      make(item, 'span', { class: 'sign', 'aria-hidden': 'true' }, i < at ? '✓' : i === at ? '▸' : '·');
      item.append(' ' + name);
      if (i < at) make(item, 'span', { class: 'unseen' }, ' (done)');
      if (i === Math.min(at, STEPS.length - 1)) item.setAttribute('aria-current', 'step');
    });
  };

  const sentence = (words) => capital(words).replace(/[^.]$/, '$&.');

  const intro = ({ part, finish, command }) => {
    const said = (!finish && INTRO[part]) || [];
    const shown = finish && finish.outcome !== 'done'
      ? [sentence(finish.message), 'To go on where this ended:']
      : finish ? [sentence(finish.message), 'This page can be closed.'] : said;
    $('intro').replaceChildren();
    for (const line of shown) make($('intro'), 'p', {}, line);
    if (finish && finish.outcome !== 'done') make($('intro'), 'p', { class: 'lines' }, command);
  };

  let last = {};
  const show = (now) => {
    view = now;
    const place = now.part + Boolean(now.finish) + title(now);
    if (place !== last.place) {
      text('title', title(now));
      steps(now);
      intro(now);
      document.title = title(now) + ' – Set up a Consensus node';
    }
    news(now.news);
    text('work', now.work || '');
    $('download').hidden = !now.download;
    if (now.download) {
      const { received, total } = now.download;
      text('bytes', mib(received) + (total ? ' of ' + mib(total) : ''));
      if (total) $('received').value = (100 * received) / total; else $('received').removeAttribute('value');
    }
    actions(now.part === 'evaluation' ? now.actions : []);
    windows(now.part === 'evaluation' ? now.windows : []);
    const number = now.question ? now.question.number + now.question.id : '';
    if (number !== last.number) ask(now.question);
    else if (now.question && now.question.problem !== last.problem) problem(now.question.problem);
    if (!now.question && place !== last.place) $('title').focus({ preventScroll: true });
    last = { place, number, problem: now.question && now.question.problem };
  };

  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const follow = async () => {
    for (;;) {
      try {
        const told = await fetch('view?after=' + (view ? view.version : ''), { cache: 'no-store', signal: AbortSignal.timeout(30000) });
        if (!told.ok) throw new Error(told.status);
        show(await told.json());
        text('link', '');
        if (view.finish) return;
        await wait(view.part === 'evaluation' ? PAUSE_MEASURING : PAUSE);
      } catch {
        text('link', 'No answer: setup may be starting anew, or has ended on its terminal.');
        await wait(RETRY);
      }
    }
  };
  follow();
})();
