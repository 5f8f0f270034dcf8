-- Health of Flotilla's resources for Argo CD. All follow kstatus: Ready, Reconciling, Stalled and
-- observedGeneration, read in kstatus' order. Uses no Lua library: argocd-cm's scripts get none.
-- A model at zero replicas is Ready: an idle model must not turn its application amber.
local function condition(name)
  if obj.status ~= nil and obj.status.conditions ~= nil then
    for _, found in ipairs(obj.status.conditions) do
      if found.type == name then
        return found
      end
    end
  end
  return {}
end

local health = {status = "Progressing", message = "Waiting for Flotilla's operator"}
local ready, reconciling, stalled = condition("Ready"), condition("Reconciling"), condition("Stalled")
if obj.status == nil or obj.status.observedGeneration == nil or ready.status == nil then
  return health
end
if obj.metadata.generation ~= nil and obj.status.observedGeneration < obj.metadata.generation then
  health.message = "Waiting for Flotilla's operator to see the latest change"
  return health
end
if reconciling.status == "True" then
  health.message = reconciling.message
elseif stalled.status == "True" then
  health.status, health.message = "Degraded", stalled.message
else
  health.message = ready.message
  if ready.status == "True" then
    health.status = "Healthy"
  end
end
return health
