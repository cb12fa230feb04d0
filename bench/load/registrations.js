// Registers users over HTTP at an arrival rate that does not wait for answers: a ramp, a steady
// part, a spike, and the steady rate again. Plain k6:
//
//   k6 run -e API_URL=http://127.0.0.1:8000 -e API_KEY=... -e RATE=100 registrations.js
//
// RATE: requests a second; SPIKE_RATE: those of the spike. RAMP, STEADY, SPIKE, REST: seconds of
// each part. MOST_CLIENTS: requests at the same time. LOG=1 writes a line for each request.

import http from 'k6/http';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';

const number = (name, otherwise) => Number(__ENV[name] || otherwise);
const rate = number('RATE', 100);
const spikeRate = number('SPIKE_RATE', 3 * rate);
const mostClients = number('MOST_CLIENTS', 300);
const url = `${__ENV.API_URL || 'http://127.0.0.1:8000'}/registrations`;
const run = __ENV.RUN || `load-${Date.now().toString(36)}`;
const headers = { 'Content-Type': 'application/json' };
if (__ENV.API_KEY) headers['X-API-Key'] = __ENV.API_KEY;

const refused = new Counter('registrations_refused');

export const options = {
  discardResponseBodies: false,
  summaryTrendStats: ['min', 'med', 'p(90)', 'p(95)', 'p(99)', 'max'],
  scenarios: {
    registrations: {
      executor: 'ramping-arrival-rate',
      startRate: 1,
      timeUnit: '1s',
      preAllocatedVUs: Math.min(50, mostClients),
      maxVUs: mostClients,
      gracefulStop: '15s',
      stages: [
        { duration: `${number('RAMP', 15)}s`, target: rate },
        { duration: `${number('STEADY', 20)}s`, target: rate },
        { duration: '1s', target: spikeRate },
        { duration: `${number('SPIKE', 8)}s`, target: spikeRate },
        { duration: '1s', target: rate },
        { duration: `${number('REST', 10)}s`, target: rate },
      ],
    },
  },
};

export default () => {
  const user = `u${exec.scenario.iterationInTest}`;
  const body = {
    stockId: run,
    userId: user,
    userInfo: { nickname: 'kim', gender: 'F', introduction: 'hello' },
  };
  const began = Date.now();
  const answer = http.post(url, JSON.stringify(body), { headers, timeout: '15s' });
  if (answer.status !== 202) refused.add(1, { status: String(answer.status) });
  if (__ENV.LOG) {
    const id = answer.status === 202 ? answer.json('id') : null;
    const milliseconds = answer.timings.duration;
    const fault = answer.error_code || null;
    console.log(JSON.stringify({ user, id, began, milliseconds, status: answer.status, fault }));
  }
};
