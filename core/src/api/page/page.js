'use strict';
(() => {
  const SVG = 'http://www.w3.org/2000/svg';
  const EVERY = 2000;
  const WIDTH = 480, HEIGHT = 150, LEFT = 64, TOP = 8, BOTTOM = 130, RIGHT = 472;
  const SIGNS = {
    serving: ['●', 'good'], updating: ['↻', 'good'], local_only: ['◐', 'good'], connecting: ['◌', 'bad'],
    not_registered: ['✕', 'bad'], stopping: ['■', 'bad'], no_answer: ['✕', 'bad'],
  };
  const $ = (id) => document.getElementById(id);
  const words = (name) => name.replaceAll('_', ' ');

  /* How figures are said. */
  const count = (n) => Number(n).toLocaleString('en', { maximumFractionDigits: n < 10 ? 1 : 0 });
  const millis = (n) => (n >= 1000 ? count(n / 1000) + ' s' : count(n) + ' ms');
  const bytes = (n) => {
    let unit = 0;
    while (n >= 1024 && unit < 5) { n /= 1024; unit += 1; }
    return n.toLocaleString('en', { maximumFractionDigits: unit ? 1 : 0 }) + ' ' + ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][unit];
  };
  const span = (s) => {
    const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
    const first = Math.max(0, parts.findIndex(([size]) => s >= size || size === 1));
    return parts.slice(first, first + 2)
      .map(([size, unit], i) => Math.floor(i ? (s % parts[first][0]) / size : s / size) + ' ' + unit).join(' ');
  };
  const time = (date) => date.toLocaleTimeString('en', { hour12: false });

  const text = (id, value) => {
    const shown = value === null || value === undefined || value === '' ? '–' : String(value);
    if ($(id).textContent !== shown) $(id).textContent = shown;
  };
  const figure = (id, value, say = count) => {
    const known = value !== null && value !== undefined;
    text(id, known ? say(value) : null);
    $(id).value = known ? value : '';
  };

  const make = (parent, name, attributes = {}) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
    return element;
  };
  const html = (parent, name, content = '') => {
    const element = document.createElement(name);
    element.textContent = content;
    parent.append(element);
    return element;
  };

  /* Two lines a chart, told apart by their stroke as well: figures a second, or as they are. */
  const rate = (column) => (s) => s[column].map((n) => n / s.step_seconds);
  const plain = (column) => (s) => s[column];
  const CHARTS = [
    ['Requests a second', count, ['fetched', rate('requests')], ['failed', rate('failed')]],
    ['Bytes a second', bytes, ['of responses', rate('bytes')], ['through the tunnel', rate('tunnel_bytes')]],
    ['Latency', millis, ['on average', (s) => s.took_us.map((t, i) => (s.ended[i] ? t / s.ended[i] / 1000 : 0))],
      ['slowest', (s) => s.slowest_us.map((t) => t / 1000)]],
    ['Under way', count, ['requests', plain('active_requests')], ['streams', plain('active_streams')]],
  ];
  let last = null;
  let back = 0;

  const charts = CHARTS.map(([title, say, ...lines]) => {
    const box = html($('charts'), 'figure');
    html(box, 'figcaption', title);
    const svg = make(box, 'svg', {
      class: 'chart', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: 'slider', 'aria-label': title,
      'aria-orientation': 'horizontal', 'aria-valuemin': 0, 'aria-valuemax': 0, 'aria-valuenow': 0,
    });
    const scale = [TOP, (TOP + BOTTOM) / 2, BOTTOM].map((y) => {
      make(svg, 'line', { class: 'rule', x1: LEFT, x2: RIGHT, y1: y, y2: y });
      return make(svg, 'text', { x: LEFT - 6, y: y + 4, 'text-anchor': 'end' });
    });
    const oldest = make(svg, 'text', { x: LEFT, y: HEIGHT - 4 });
    make(svg, 'text', { x: RIGHT, y: HEIGHT - 4, 'text-anchor': 'end' }).textContent = 'now';
    const paths = ['two', 'one'].map((kind) => make(svg, 'path', { class: kind })).reverse();
    const cursor = make(svg, 'line', { class: 'cursor', y1: TOP, y2: BOTTOM });
    const readout = html(box, 'p');
    readout.className = 'readout';
    const said = ['one', 'two'].map((kind) => {
      const key = make(readout, 'svg', { class: 'key', viewBox: '0 0 36 10', 'aria-hidden': 'true' });
      make(key, 'path', { class: kind, d: 'M0 5H36' });
      return html(readout, 'span');
    });
    const when = html(readout, 'span');
    svg.addEventListener('keydown', (event) => {
      const most = last ? last.requests.length - 1 : 0;
      const to = { ArrowLeft: back + 1, ArrowDown: back + 1, ArrowRight: back - 1, ArrowUp: back - 1,
        PageUp: back - 15, PageDown: back + 15, Home: most, End: 0, Escape: 0 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(to);
    });
    svg.addEventListener('pointermove', (event) => {
      if (!last || last.requests.length < 2) return;
      const at = svg.getBoundingClientRect();
      const x = ((event.clientX - at.left) / at.width) * WIDTH;
      const n = last.requests.length - 1;
      go(Math.round((1 - (x - LEFT) / (RIGHT - LEFT)) * n));
    });
    svg.addEventListener('pointerleave', () => go(0));

    return (samples, until) => {
      const columns = lines.map(([, of]) => of(samples));
      const n = columns[0].length;
      const most = Math.max(0, ...columns.flat());
      /* 1, 2 or 5 of a power of ten; of two where bytes are counted. */
      const power = 10 ** Math.floor(Math.log10(most || 1));
      const top = say === bytes ? 2 ** Math.ceil(Math.log2(Math.max(most, 2)))
        : Math.max([1, 2, 5, 10].find((step) => step * power >= most) * power, say === millis ? 1 : 2);
      scale.forEach((label, i) => { label.textContent = say((top * (2 - i)) / 2); });
      const x = (i) => (n < 2 ? RIGHT : LEFT + ((RIGHT - LEFT) * i) / (n - 1));
      const y = (value) => BOTTOM - ((BOTTOM - TOP) * value) / top;
      paths.forEach((path, line) => {
        const points = columns[line].map((value, i) => x(i).toFixed(1) + ' ' + y(value).toFixed(1));
        path.setAttribute('d', points.length ? 'M' + points.join('L') : '');
      });
      oldest.textContent = n ? span((n - 1) * samples.step_seconds) + ' ago' : '';
      const at = n - 1 - back;
      const moment = back ? 'at ' + time(new Date(until - back * samples.step_seconds * 1000)) : 'now';
      const values = lines.map(([name], line) => (n ? say(columns[line][at]) : '–') + ' ' + name);
      said.forEach((span, line) => { span.textContent = ' ' + values[line] + (line ? ' ' : ', '); });
      when.textContent = moment;
      cursor.setAttribute('visibility', back ? 'visible' : 'hidden');
      cursor.setAttribute('x1', x(at));
      cursor.setAttribute('x2', x(at));
      svg.setAttribute('aria-valuemax', Math.max(0, n - 1));
      svg.setAttribute('aria-valuenow', Math.max(0, at));
      svg.setAttribute('aria-valuetext', values.join(', ') + ', ' + moment);
    };
  });
  let until = 0;
  const draw = () => { if (last) charts.forEach((chart) => chart(last, until)); };
  const go = (to) => {
    const most = last ? Math.max(0, last.requests.length - 1) : 0;
    back = Math.min(most, Math.max(0, to));
    draw();
  };

  const tell = (state, advice) => {
    const [sign, kind] = SIGNS[state] || ['?', 'bad'];
    text('sign', sign);
    text('word', words(state));
    $('advice').textContent = advice ? '– ' + advice : '';
    $('state').className = kind;
    document.title = words(state) + ' – Consensus node';
  };

  let shown = '';
  const events = (told) => {
    const now = JSON.stringify(told);
    if (now === shown) return;
    shown = now;
    $('rows').replaceChildren();
    for (const { at, level, scope, text: what, count: times } of [...told].reverse()) {
      const row = html($('rows'), 'tr');
      row.className = ['warn', 'error'].includes(level) ? level : '';
      const stamp = html(html(row, 'td'), 'time', new Date(at).toLocaleString('en', { hour12: false }));
      stamp.dateTime = at;
      for (const cell of [level, scope, what + (times > 1 ? ` (${times} times in a row)` : '')]) html(row, 'td', cell);
    }
  };

  const show = (status) => {
    const { tunnel, served, update, samples } = status;
    tell(status.state, status.advice);
    text('node', status.node_id);
    text('domain', status.domain);
    text('release', status.version + ' (' + status.platform + ')');
    figure('uptime', status.uptime, span);
    text('tunnel', tunnel && (tunnel.connected ? 'connected for ' + span(tunnel.since) : 'not connected')
      + '; sessions ' + tunnel.sessions + ', attempts ' + tunnel.attempts);
    text('update', update && [update.state, update.version, update.on_probation ? '(on probation)' : '']
      .filter(Boolean).join(' '));
    figure('warnings', status.warnings);
    figure('errors', status.errors);
    $('served').hidden = $('lately').hidden = !served;
    if (served) {
      for (const name of ['requests', 'failed', 'streams', 'over_limit', 'refused']) figure(name, served[name]);
      for (const name of ['requests', 'streams']) {
        figure('active_' + name, served['active_' + name], (n) => count(n) + ' of ' + count(served['max_' + name]));
      }
      figure('bytes', served.bytes, bytes);
      figure('half', served.half_within_ms, millis);
      figure('most', served.most_within_ms, millis);
      figure('sent', tunnel.sent_bytes, bytes);
      figure('received', tunnel.received_bytes, bytes);
      last = samples;
      until = Date.parse(status.timestamp);
      go(back);
    }
    events(status.events);
    text('asof', time(new Date(status.timestamp)));
    $('asof').dateTime = status.timestamp;
  };

  let timer = 0;
  const ask = async () => {
    clearTimeout(timer);
    try {
      const answer = await fetch('/status', { cache: 'no-store', signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(answer.status);
      show(await answer.json());
      document.body.classList.remove('stale');
    } catch {
      tell('no_answer', 'the node does not answer; it may be starting again. What is below is what it said last.');
      document.body.classList.add('stale');
    }
    plan();
  };
  const plan = () => {
    clearTimeout(timer);
    const paused = $('pause').getAttribute('aria-pressed') === 'true';
    if (!paused && !document.hidden) timer = setTimeout(ask, EVERY);
  };
  $('pause').addEventListener('click', () => {
    const paused = $('pause').getAttribute('aria-pressed') !== 'true';
    $('pause').setAttribute('aria-pressed', paused);
    if (paused) clearTimeout(timer); else ask();
  });
  document.addEventListener('visibilitychange', () => { if (document.hidden) clearTimeout(timer); else plan(); });
  ask();
})();
