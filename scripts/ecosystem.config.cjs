// The node as PM2 is to keep it. `start-pm2.sh` hands this to PM2; PM2 keeps what it says and needs the file no more.
//
//   CONSENSUS_NODE_INSTALL_DIR  the install directory; default: the one that this file is in, else
//                               ~/.consensus/node-runtime
//   CONSENSUS_PM2_NAME          what PM2 calls the node; default consensus-node
//   CONSENSUS_NODE_ENV_FILE     settings, read at each start and not kept by PM2; default: INSTALL_DIR/node.env, where
//                               it is there
//   CONSENSUS_PM2_LOG_DIR       where the log goes; default: PM2's own, ~/.pm2/logs
//
// PM2's logs grow without a bound: `pm2 install pm2-logrotate`, which `ensure-pm2.sh` offers, gives them one.
'use strict';

const fs = require('fs');
const os = require('os');
const path = require('path');

const environment = process.env;

function installDir() {
    if (environment.CONSENSUS_NODE_INSTALL_DIR) {
        return path.resolve(environment.CONSENSUS_NODE_INSTALL_DIR);
    }
    // Of a release this is releases/ID/scripts/ecosystem.config.cjs.
    const above = path.resolve(__dirname, '..', '..', '..');
    const isOne = fs.existsSync(path.join(above, 'releases'));
    return isOne ? above : path.join(environment.HOME || os.homedir(), '.consensus', 'node-runtime');
}

const dir = installDir();

// PM2 writes the environment of an app into files of its own, and gives it to every later start. So it gets what the
// node is to have, and no secret, and nothing that speaks of one release: that would outlive an update.
const TAKEN = ['HOME', 'PATH', 'LANG', 'TZ', 'SSL_CERT_FILE', 'SSL_CERT_DIR', 'NODE_HOST', 'NODE_PORT'];
const SECRET = /TOKEN|SECRET|PASSWORD|PRIVATE|ADMIN/;
const LEFT_OUT = [
    'CONSENSUS_NODE_VERSION',
    'CONSENSUS_NODE_COMMIT',
    'CONSENSUS_NODE_PLATFORM',
    'CONSENSUS_NODE_DOWNLOAD_URL',
    'CONSENSUS_NODE_TARBALL_SHA256',
    'CONSENSUS_RELEASE_SIGNING_KEY_ID',
    'CONSENSUS_RELEASE_SIGNATURE',
    'CONSENSUS_NODE_ARTIFACT_PATH',
    'CONSENSUS_NODE_TARGET_VERSION',
    'CONSENSUS_NODE_UPDATE_ID',
];
const env = {};
for (const [name, value] of Object.entries(environment)) {
    const isSetting = name.startsWith('CONSENSUS_') && !LEFT_OUT.includes(name) && !SECRET.test(name);
    if (TAKEN.includes(name) || isSetting) {
        env[name] = value;
    }
}
env.CONSENSUS_NODE_INSTALL_DIR = dir;
// PM2 sees an update then as what it is, a restart.
env.CONSENSUS_NODE_EXIT_ON_UPDATE = '1';
if (!env.CONSENSUS_NODE_ENV_FILE && fs.existsSync(path.join(dir, 'node.env'))) {
    env.CONSENSUS_NODE_ENV_FILE = path.join(dir, 'node.env');
}

// What start-pm2.sh was given, one a line.
const said = (environment.PM2_NODE_ARGUMENTS || '').split('\n').filter((argument) => argument !== '');

const app = {
    name: environment.CONSENSUS_PM2_NAME || 'consensus-node',
    // A script whose path has a blank in it PM2 would take for a command line.
    script: '/bin/sh',
    args: [path.join(dir, 'run-node.sh')].concat(said.length > 0 ? said : ['run']),
    interpreter: 'none',
    cwd: dir,
    exec_mode: 'fork',
    instances: 1,
    env,
    // Nothing else of the environment: every name has the empty text in it. PM2 takes `true` here for nothing at all.
    filter_env: [''],
    autorestart: true,
    // From a second up to fifteen between restarts, and no number of them after which PM2 gives up: a network that is
    // away for a day is no reason to stay down.
    exp_backoff_restart_delay: 1000,
    max_restarts: 2147483647,
    // What runs gets its time to end before PM2 kills it; an update's drain takes up to half a minute.
    kill_timeout: 60000,
    merge_logs: true,
    watch: false,
    // PM2 need not look for a repository around the install directory.
    vizion: false,
};
if (environment.CONSENSUS_PM2_LOG_DIR) {
    app.out_file = path.resolve(environment.CONSENSUS_PM2_LOG_DIR, app.name + '-out.log');
    app.error_file = path.resolve(environment.CONSENSUS_PM2_LOG_DIR, app.name + '-error.log');
}

module.exports = { apps: [app] };
