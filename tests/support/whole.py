"""One object of each kind that sets every field of its spec (but for alternatives)."""

from typing import Any

MODEL_DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "flotilla.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "whole"},
    "spec": {
        "model": {
            "source": "hf://Qwen/Qwen2.5-7B-Instruct",
            "revision": "0123abcd",
            "servedName": "qwen2.5-7b",
            "contextLength": 8192,
            "architecture": {
                "parametersMillions": 7616,
                "layers": 28,
                "hiddenSize": 3584,
                "intermediateSize": 18944,
                "attentionHeads": 28,
                "kvHeads": 4,
                "headDim": 128,
                "vocabSize": 152064,
                "embeddings": "Untied",
                "maxContextLength": 32768,
                "slidingWindow": 4096,
                "slidingWindowLayers": 14,
                "latentWidth": 0,
                "recurrentLayers": 0,
                "recurrentStateBytes": 0,
                "experts": 0,
                "expertsPerToken": 0,
                "expertWidth": 0,
                "expertLayers": 0,
            },
            "credentialsSecret": {"name": "hf", "key": "token"},
            "adapters": [{"name": "triage", "source": "hf://acme/triage-lora", "rank": 8}],
            "lora": {"maxAdapters": 2, "maxRank": 8, "claimNames": ["adapters"]},
            "cache": {"claimName": "weights"},
        },
        "engine": {
            "name": "vllm",
            "version": "0.33.0",
            "image": "registry.example.com/vllm:v0.33.0",
            "args": ["--max-num-seqs=64"],
            "env": [
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "VLLM_LOGGING_LEVEL", "value": "INFO"},
            ],
        },
        "quantization": {"method": "fp8", "kvCache": "fp8"},
        "accelerator": {"class": "nvidia-l4", "count": 2},
        "replicas": 2,
        "scaling": {
            "mode": "External",
            "minReplicas": 0,
            "maxReplicas": 8,
            "queueDepthPerReplica": 8,
            "scaleDownDelaySeconds": 300,
            "scaleUpLimitPerMinute": 20,
            "scaleDownPercentPerMinute": 50,
            "scaleToZeroAfterSeconds": 900,
        },
        "rollout": {"strategy": "Surge", "timeoutSeconds": 1800},
        "scheduling": {
            "nodeSelector": {"pool": "inference"},
            "tolerations": [
                {"key": "dedicated", "operator": "Equal", "value": "ml", "effect": "NoExecute", "tolerationSeconds": 60}
            ],
            "affinity": {"podAntiAffinity": {}},
            "topologySpread": "None",
            "priorityClassName": "high",
            "runtimeClassName": "nvidia",
            "schedulerName": "default-scheduler",
            "queueName": "team-a",
        },
        "resources": {"cpu": "8", "memory": "32Gi", "sharedMemory": "4Gi"},
        "cost": {
            "compareWith": [
                {
                    "provider": "openai",
                    "model": "gpt-5-mini",
                    "mode": "Standard",
                    "inputTokensPercent": 103,
                    "outputTokensPercent": 150,
                    "cacheCredit": "Fixed",
                    "cachedPercent": 40,
                    "prices": {
                        "inputUsdPerMillion": "0.25",
                        "outputUsdPerMillion": "2",
                        "cachedUsdPerMillion": "0.025",
                    },
                }
            ],
            "owned": {
                "purchaseUsd": "280000",
                "gpus": 8,
                "years": 3,
                "maintenancePercentPerYear": 10,
                "powerWatts": 2400,
                "usdPerKwh": "0.12",
                "puePercent": 140,
            },
            "outputTokenWeightPercent": 250,
            "cachedTokenWeightPercent": 10,
            "maxTokensPerSecond": 2400,
            "overheadUsdPerDay": "12.50",
            "monthlyBudgetUsd": "4000",
        },
    },
}

ROUTING_POLICY: dict[str, Any] = {
    "apiVersion": "flotilla.dev/v1alpha1",
    "kind": "RoutingPolicy",
    "metadata": {"name": "whole"},
    "spec": {
        "hostModels": ["support"],
        "targets": [
            {
                "name": "frontier",
                "external": {
                    "provider": "OpenAI",
                    "baseURL": "https://api.openai.com/v1",
                    "model": "gpt-5-mini",
                    "baseModel": "gpt-5-mini",
                    "apiVersion": "2026-01-01",
                    "secretRef": {"name": "openai", "key": "api-key"},
                    "price": {
                        "inputPerMTok": "0.25",
                        "outputPerMTok": "2",
                        "cachedInputPerMTok": "0.025",
                        "cacheWriteInputPerMTok": "0.25",
                        "audioInputPerMTok": "10",
                        "audioOutputPerMTok": "20",
                        "serviceTiers": [{"name": "priority", "percent": 200}],
                    },
                },
                "region": "us",
                "capabilities": {
                    "contextLength": 400000,
                    "maxOutputTokens": 4096,
                    "tools": "Supported",
                    "jsonSchema": "Supported",
                    "vision": "Supported",
                },
            },
            {
                "name": "small",
                "modelDeploymentRef": {"name": "qwen2-5-1-5b", "adapter": "triage"},
                "capabilities": {},
            },
        ],
        "dataPolicy": {
            "classHeader": "x-data-class",
            "unknownClass": "sovereign",
            "classes": [
                {"name": "sovereign", "allowBoundaries": ["Cluster"], "allowRegions": ["us"], "capture": "Allowed"}
            ],
        },
        "clients": [
            {"name": "helpdesk", "secretRef": {"name": "clients", "key": "helpdesk"}, "dataClass": "sovereign"}
        ],
        "clientsFrom": {"name": "clients", "key": "clients.yaml"},
        "tokenLogin": {
            "issuer": "https://login.example.com",
            "audience": "flotilla",
            "jwksFrom": {"name": "login", "key": "jwks.json"},
            "clientClaim": "azp",
            "teamClaim": "team",
            "modelsClaim": "models",
            "dataClass": "sovereign",
        },
        "capture": {
            "rules": ["classify"],
            "classes": ["sovereign"],
            "percent": 5,
            "includeEscalated": "Sampled",
            "to": {"bucket": "s3://examples/support", "credentialsSecret": "bucket"},
            "redact": ["Email", "Secret"],
            "retentionDays": 7,
            "maxMegabytesPerDay": 100,
        },
        "teams": ["support"],
        "classifier": {
            "target": "small",
            "tasks": [
                {"name": "classification", "description": "Sort a ticket into one of a few categories."},
                {"name": "drafting", "description": "Write an answer to a customer."},
            ],
            "maxPromptBytes": 2000,
            "timeoutSeconds": 3,
        },
        "rules": [
            {
                "name": "classify",
                "match": {
                    "models": ["support"],
                    "tasks": ["classification"],
                    "headers": [{"name": "x-team", "value": "support"}],
                    "promptTokens": {"min": 1, "max": 2000},
                    "tools": {"min": 0, "max": 1},
                    "streaming": "Whole",
                },
                "route": {
                    "split": [{"target": "small", "weight": 1}],
                    "fallback": {"targets": ["frontier"], "on": ["Connect", "Timeout"]},
                    "escalation": {
                        "target": "frontier",
                        "signals": ["SchemaInvalid", "EmptyAnswer"],
                        "confidence": {
                            "method": "MarginP10",
                            "escalateAboveErrorPermille": 150,
                            "calibration": [
                                {"marginPermille": 0, "errorPermille": 600},
                                {"marginPermille": 400, "errorPermille": 100},
                            ],
                        },
                        "onExhausted": "Fail",
                        "maxRatePercent": 15,
                        "maxAddedLatencySeconds": 5,
                        "maxBufferedTokens": 128,
                    },
                    "maxAttempts": 2,
                    "timeouts": {"firstTokenSeconds": 3, "idleSeconds": 10, "totalSeconds": 60},
                },
            }
        ],
        "defaultRoute": {
            "preference": [{"target": "small", "evaluations": ["triage"]}, {"target": "frontier"}],
            "promotion": {
                "steps": [{"percent": 5, "minutes": 10}, {"percent": 50, "minutes": 60}],
                "guard": {
                    "errorPermille": 20,
                    "escalationPermille": 150,
                    "firstTokenP99Milliseconds": 400,
                    "minRequests": 50,
                },
                "onInconclusive": "Withdraw",
            },
            "fallback": {"targets": ["frontier"], "on": ["NoEndpoints"]},
            "shadow": {
                "target": "frontier",
                "percent": 5,
                "maxConcurrent": 2,
                "maxUSDPerDay": "2.50",
                "compare": "Label",
            },
            "escalation": {
                "target": "frontier",
                "signals": ["Refusal"],
                "confidence": {
                    "method": "MarginP10",
                    "escalateAboveErrorPermille": 100,
                    "calibration": [
                        {"marginPermille": 0, "errorPermille": 500},
                        {"marginPermille": 500, "errorPermille": 50},
                    ],
                },
                "onExhausted": "ReturnBest",
                "maxRatePercent": 10,
                "maxAddedLatencySeconds": 20,
                "maxBufferedTokens": 256,
            },
            "maxAttempts": 3,
            "timeouts": {"firstTokenSeconds": 30, "idleSeconds": 30, "totalSeconds": 300},
        },
        "limits": {
            "rates": [{"name": "all", "per": "Client", "requestsPerMinute": 600, "tokensPerMinute": 200000}],
            "budgets": [
                {
                    "name": "month",
                    "per": "Policy",
                    "windowHours": 720,
                    "amountUSD": "500",
                    "onExceeded": "ClusterOnly",
                }
            ],
        },
        "hold": {"maxWaitSeconds": 60, "maxRequests": 100, "maxBytes": 1048576},
    },
}

EVALUATION: dict[str, Any] = {
    "apiVersion": "flotilla.dev/v1alpha1",
    "kind": "Evaluation",
    "metadata": {"name": "whole"},
    "spec": {
        "task": "classification",
        "dataset": {
            "source": "s3://cases/tickets.jsonl",
            "sampleSize": 400,
            "seed": 7,
            "credentialsSecret": {"name": "bucket", "key": "token"},
        },
        "targets": [
            {
                "name": "frontier",
                "external": ROUTING_POLICY["spec"]["targets"][0]["external"],
            },
            {"name": "small", "modelDeploymentRef": {"name": "qwen2-5-1-5b", "adapter": "triage"}},
        ],
        "request": {
            "instructions": "Answer with one word.",
            "maxTokens": 32,
            "timeoutSeconds": 20,
            "parameters": {"response_format": {"type": "json_object"}},
        },
        "scorer": {
            "method": "Judge",
            "labels": ["billing", "shipping"],
            "fields": ["category"],
            "jsonSchema": {"type": "object"},
            "tolerance": "0.5",
            "tolerancePermille": 10,
            "judge": {"target": "frontier", "rubric": "The answer is polite and correct."},
        },
        "requirements": {
            "quality": {"minPermille": 900, "withinPermilleOf": {"target": "frontier", "permille": 20}},
            "confidencePermille": 950,
            "firstTokenP99Milliseconds": 400,
            "totalP99Milliseconds": 1500,
            "malformedPermille": 5,
            "costPerThousandTasksUSD": "0.20",
        },
        "tail": {"weirdInputs": "Included"},
        "load": {"concurrency": 4},
        "limits": {"maxHostedUSD": "2.50"},
        "rerun": {"afterChange": "Enabled", "everyHours": 168},
        "job": {
            "queueName": "evaluations",
            "resources": {"cpu": "500m", "memory": "512Mi"},
            "resultsClaimName": "results",
            "maxDurationSeconds": 3600,
            "nodeSelector": {"kubernetes.io/os": "linux"},
        },
    },
}
